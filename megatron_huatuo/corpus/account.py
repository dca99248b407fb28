"""What flows through curation and how it is counted: documents with their place, rejections with a reason, the report.

Invariant: documents in + parts made by segmentation = passages out + rejections of documents and passages.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.records import Document


@dataclass(frozen=True)
class Item:
    """A document, later a passage, and where it comes from.

    line: from 1; the number of the record in formats without lines. offset: in the uncompressed file, None where a
    format has none. parent: id of the document that a passage is part `part` of `parts` of. score: its quality, 0 to 1.
    """

    document: Document
    file: str
    line: int
    offset: int | None = None
    parent: str | None = None
    part: int = 1
    parts: int = 1
    score: float | None = None

    def with_text(self, text: str) -> Item:
        """The same item with another text."""
        return replace(self, document=replace(self.document, text=text))

    def to_document(self) -> Document:
        """The Document record, its origin among the metadata."""
        origin: dict[str, Any] = {"document": self.parent or self.document.id, "file": self.file, "line": self.line}
        if self.offset is not None:
            origin["offset"] = self.offset
        if self.parts > 1:
            origin.update(part=self.part, parts=self.parts)
        if self.score is not None:
            origin["score"] = self.score
        return replace(self.document, metadata={**(self.document.metadata or {}), "origin": origin})

    def reject(self, reason: str) -> Rejected:
        """The rejection of this item."""
        return Rejected(self.document.id, reason, self.file, self.line, self.document.source)


class Rejected(NamedTuple):
    """What was dropped, why, and where it stood. `id` and `source` are None for a line that is no record."""

    id: str | None
    reason: str
    file: str
    line: int
    source: str | None = None

    def to_record(self) -> dict[str, Any]:
        """The line of `rejected.jsonl`."""
        return {"id": self.id, "reason": self.reason, "file": self.file, "line": self.line}


class Account:
    """Counts that add up over tasks. Everything in `counts` is deterministic; `seconds` is not."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: Counter[str] = Counter()
        self.bytes_by_step: Counter[str] = Counter()

    def add_in(self, document: Document) -> None:
        """A document as it was read."""
        self._add("in", document.source, len(document.text.encode()))

    def add_out(self, source: str, number_bytes: int) -> None:
        """A passage that is kept, with the size of its text."""
        self._add("out", source, number_bytes)

    def add_parts(self, source: str, more: int) -> None:
        """A document that became `more` + 1 passages."""
        self.counts["parts"][source] += more

    def add_rejected(self, rejected: Rejected) -> None:
        """A rejection, under its source and its reason without details."""
        self.counts["rejected"][f"{rejected.source or 'unknown'}\t{rejected.reason.split(':')[0]}"] += 1

    def add_repairs(self, repairs: Mapping[str, int]) -> None:
        """Characters that cleaning touched, by kind of repair."""
        self.counts["repairs"].update(repairs)

    def add_score(self, source: str, score: float) -> None:
        """The quality score of a passage, before the threshold; counted in tenths."""
        self.counts["scores"][f"{source}\t{min(int(10 * score), 9)}"] += 1

    def add_time(self, step: str, seconds: float, number_bytes: int) -> None:
        """Time that a step took for so much text."""
        self.seconds[step] += seconds  # type: ignore[assignment]
        self.bytes_by_step[step] += number_bytes

    def _add(self, where: str, source: str, number_bytes: int) -> None:
        self.counts[f"documents {where}"][source] += 1
        self.counts[f"bytes {where}"][source] += number_bytes

    def merge(self, record: Mapping[str, Any]) -> None:
        """Add what another account's `to_record` says."""
        for name, counter in record["counts"].items():
            self.counts[name].update(counter)
        self.seconds.update(record["seconds"])
        self.bytes_by_step.update(record["bytes_by_step"])

    def to_record(self) -> dict[str, Any]:
        """Plain JSON for `merge`."""
        return {
            "counts": {name: dict(counter) for name, counter in self.counts.items()},
            "seconds": dict(self.seconds),
            "bytes_by_step": dict(self.bytes_by_step),
        }

    def report(self) -> dict[str, Any]:
        """The deterministic part of `report.json`."""
        by_reason: Counter[str] = Counter()
        by_source: dict[str, Counter[str]] = defaultdict(Counter)
        for key, number in self.counts["rejected"].items():
            source, reason = key.split("\t")
            by_reason[reason] += number
            by_source[source][reason] += number
        sources = sorted({*self.counts["documents in"], *by_source})
        return {
            "documents_in": self.counts["documents in"].total(),
            "documents_out": self.counts["documents out"].total(),
            "bytes_in": self.counts["bytes in"].total(),
            "bytes_out": self.counts["bytes out"].total(),
            "parts_made": self.counts["parts"].total(),
            "rejected": by_reason.total(),
            "rejected_by_reason": dict(sorted(by_reason.items())),
            "by_source": {
                source: {
                    "documents_in": self.counts["documents in"][source],
                    "documents_out": self.counts["documents out"][source],
                    "bytes_in": self.counts["bytes in"][source],
                    "bytes_out": self.counts["bytes out"][source],
                    "rejected": dict(sorted(by_source[source].items())),
                    "scores": [self.counts["scores"][f"{source}\t{tenth}"] for tenth in range(10)],
                }
                for source in sources
            },
            "repairs": dict(sorted(self.counts["repairs"].items())),
        }

    def rates(self) -> dict[str, Any]:
        """MB/s of each step in one process, for `rates.json`."""
        return {
            step: {
                "seconds": round(seconds, 3),
                "megabytes": round(self.bytes_by_step[step] / 1e6, 3),
                "mb_per_s": round(self.bytes_by_step[step] / 1e6 / seconds, 2) if seconds else None,
            }
            for step, seconds in self.seconds.items()
        }


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
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    with atomic_write(path) as handle:
        handle.write(picture.getvalue())
