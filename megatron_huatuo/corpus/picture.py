"""The report of curation as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_report(report: dict[str, Any], path: Path) -> None:
    """Bars, one a source: passages kept, then what was rejected by reason, in share of all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # heavy, and needed at the very end only
    from matplotlib.figure import Figure

    sources = list(report["by_source"])
    reasons = list(report["rejected_by_reason"])
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(sources)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    totals = [
        max(1, row["documents_out"] + sum(row["rejected"].values()))
        for row in (report["by_source"][s] for s in sources)
    ]
    left = [0.0] * len(sources)
    for name in ["kept", *reasons]:
        widths = [
            100 * (row["documents_out"] if name == "kept" else row["rejected"].get(name, 0)) / total
            for row, total in zip((report["by_source"][source] for source in sources), totals, strict=True)
        ]
        axes.barh(sources, widths, left=left, label=name, color="#4c9f70" if name == "kept" else None)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of passages and rejected documents")
    axes.set_title(
        f"{report['documents_in']:,} documents in, {report['documents_out']:,} passages out "
        f"({report['bytes_out'] / max(1, report['bytes_in']):.1%} of the bytes)"
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 / (0.6 + 0.2 * len(sources))), ncols=4, fontsize="small")
    figure.savefig(path, dpi=120)
