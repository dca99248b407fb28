"""Charts of a report as inline SVG, drawn by matplotlib: no script, no network, sharp in print, readable in the dark.

Text stays text, so that a browser's own fonts show Chinese; black becomes the page's colour of text.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.learning_rate import BlendRates
from megatron_huatuo.inspect.report_data import Curve

_INK = "#010203"
"""Stands for the colour of text until the SVG is written; no series has it."""


def line_chart(title: str, curves: Sequence[Curve], x_label: str, y_label: str, *, from_zero: bool = False) -> str:
    """One or several lines over x."""
    figure, axes = _figure()
    for number, curve in enumerate(curves):
        known = ~np.isnan(curve.y)
        marker = "o" if known.sum() < 12 else ""
        axes.plot(
            curve.x[known], curve.y[known], color=f"C{number % 10}", label=curve.name, linewidth=1.3, marker=marker,
            markersize=3,
        )  # fmt: skip
    axes.set(xlabel=x_label, ylabel=y_label)
    if from_zero:
        axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(fontsize=8, ncols=min(5, len(curves)), frameon=False)
    return _svg(figure, title, f"{title}: {', '.join(_in_words(curve) for curve in curves)}")


def _in_words(curve: Curve) -> str:
    known = curve.y[~np.isnan(curve.y)]
    return f"{curve.name} from {known[0]:.4g} to {known[-1]:.4g}" if len(known) else f"{curve.name} without values"


def mixture_chart(title: str, names: Sequence[str], x: NDArray[np.float64], shares: NDArray[np.float64]) -> str:
    """Shares [B, S] of all sources over progress [B], as areas one on the other."""
    figure, axes = _figure()
    axes.stackplot(
        x, shares.T, labels=list(names), colors=[f"C{number % 10}" for number in range(len(names))], alpha=0.8
    )
    axes.set(xlim=(float(x[0]), float(x[-1])), ylim=(0, 1), xlabel="progress", ylabel="share of the drawn documents")
    axes.legend(fontsize=8, ncols=min(5, len(names)), frameon=False, loc="upper center")
    middle = ", ".join(f"{name} {shares[0, i]:.0%} to {shares[-1, i]:.0%}" for i, name in enumerate(names))
    return _svg(figure, title, f"{title}: {middle}")


def rate_chart(title: str, rates: BlendRates) -> str:
    """The learning rate over the run, and its mean for each source as a bar."""
    figure, axes = _figure()
    progress = np.linspace(0, 1, 300)
    axes.plot(progress, rates.shares(progress), color=_INK, linewidth=1.3)
    axes.set(xlim=(0, 1.6), ylim=(0, 1.08), xlabel="progress", ylabel="share of the peak")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    means = [rate.mean_over_draws for rate in rates.rates]
    width = 0.5 / max(1, len(means))
    for number, (name, mean) in enumerate(zip(rates.names, means, strict=True)):
        place = 1.06 + (number + 0.5) * width
        axes.bar(place, np.nan_to_num(mean), width=width * 0.8, color=f"C{number % 10}")
        axes.text(place, 0.02, name, rotation=90, ha="center", va="bottom", fontsize=8)
    words = ", ".join(f"{name} {mean:.2f}" for name, mean in zip(rates.names, means, strict=True))
    return _svg(figure, title, f"{title}: mean share of the peak by source: {words}")


def bar_chart(title: str, values: dict[str, float], unit: str) -> str:
    """One bar for each value."""
    figure, axes = _figure(height=0.6 + 0.32 * len(values))
    places = np.arange(len(values))
    axes.barh(places, list(values.values()), color="C0")
    axes.set_yticks(places, list(values))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    return _svg(figure, title, f"{title}: {', '.join(f'{name} {value:.4g} {unit}' for name, value in values.items())}")


def _figure(height: float = 3.2) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "report"  # the same run gives the same page
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    for part in (axes.xaxis, axes.yaxis):
        part.label.set_color(_INK)
    axes.tick_params(colors=_INK)
    for spine in axes.spines.values():
        spine.set_edgecolor(_INK)
    return figure, axes


def _svg(figure: Any, title: str, description: str) -> str:
    """The figure as an <svg> element with a title and a description for screen readers."""
    for axes in figure.axes:
        legend = axes.get_legend()
        for text in [*axes.texts, *(legend.get_texts() if legend else [])]:
            text.set_color(_INK)
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # text stays text: the browser has the characters
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace(_INK, "currentColor").replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    head = f'role="img" tabindex="0" aria-label="{html.escape(description, quote=True)}"'
    body = re.sub(r'<svg ([^>]*?)width="[^"]*"', rf"<svg {head} \1", body, count=1)
    body = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", body, count=1)
    drawn = _own_ids(body.replace(">", f"><title>{html.escape(title)}</title>", 1), title)
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{drawn}</figure>"


def _own_ids(svg: str, title: str) -> str:
    """Several charts lie in one page: their ids must differ."""
    prefix = re.sub(r"\W+", "-", title) + "-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)
