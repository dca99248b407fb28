"""Results of all arms and seeds as paired differences: a table, a picture, and the numbers as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiment import ARMS, REFERENCE, SOURCES

# 97.5 % quantiles of Student's t by degrees of freedom; two-sided intervals of 95 %.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
CAVEAT = "A toy proves no law: this is what these models and this sample show, and nothing about other sizes or data."

Metric = tuple[str, Callable[[dict[str, Any]], float], str]
METRICS: tuple[Metric, ...] = (
    *((f"loss {name}", lambda result, name=name: result["held_out_loss"][name], ".3f") for name in SOURCES),  # type: ignore[misc]
    ("loss general", lambda result: result["general_loss"], ".3f"),
    ("exam accuracy", lambda result: result["exam_accuracy"], ".3f"),
    ("worst gradient norm", lambda result: result["worst_grad_norm"], ".2f"),
    ("loss spikes", lambda result: result["loss_spikes"], ".1f"),
)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half width of its 95 % interval) over seeds; one seed has no interval."""
    if len(values) < 2:
        return values[0], None
    quantile = _T.get(len(values) - 1, 1.96 if len(values) > 30 else 2.262)
    return statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))


def compare(results: list[dict[str, Any]]) -> dict[str, Any]:
    """{arm: {metric: {mean, difference from REFERENCE, half_width, seeds}}}, differences paired by seed."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    reference, compared = by_arm[REFERENCE], {}
    for arm in (arm.name for arm in ARMS if arm.name in by_arm):
        seeds = sorted(by_arm[arm].keys() & reference.keys())
        compared[arm] = {"seeds": len(seeds)}
        for name, read, _ in METRICS:
            differences = [read(by_arm[arm][seed]) - read(reference[seed]) for seed in seeds]
            difference, half = interval(differences)
            mean = statistics.fmean(read(by_arm[arm][seed]) for seed in seeds)
            compared[arm][name] = {"mean": mean, "difference": difference, "half_width": half}
    return compared


def format_table(compared: dict[str, Any], base: dict[str, Any]) -> str:
    """Markdown: one line for each metric, one column for each arm, differences from the two stages in brackets."""
    arms = list(compared)
    lines = [f"| | base | {' | '.join(arms)} |", f"| --- |{' --- |' * (len(arms) + 1)}"]
    for name, _, form in METRICS:
        before = (
            base["general_loss"] if name == "loss general" else base["held_out_loss"].get(name.removeprefix("loss "))
        )
        cells = [_cell(compared[arm][name], form, is_reference=arm == REFERENCE) for arm in arms]
        lines.append(f"| {name} | {'' if before is None else format(before, form)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figures: dict[str, Any], form: str, *, is_reference: bool) -> str:
    mean = format(figures["mean"], form)
    if is_reference:
        return mean
    half = figures["half_width"]
    clear = "**" if half is not None and abs(figures["difference"]) > half else ""
    width = "one seed" if half is None else f"± {half:{form}}"
    return f"{mean} ({clear}{figures['difference']:+{form}}{clear} {width})"


def plot(results: list[dict[str, Any]], compared: dict[str, Any], path: Path) -> None:
    """Training loss of every arm, mean over seeds, and the differences from the two stages with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5))
    FigureCanvasAgg(figure)
    curves, bars = figure.subplots(1, 2)
    for number, arm in enumerate(compared):
        runs = [result["training_loss"] for result in results if result["arm"] == arm]
        length = min(map(len, runs))
        mean = [statistics.fmean(run[step] for run in runs) for step in range(length)]
        smooth = [statistics.fmean(mean[max(0, step - 10) : step + 1]) for step in range(length)]
        curves.plot([step / length for step in range(length)], smooth, color=f"C{number}", label=arm, linewidth=1.2)
    curves.set(xlabel="progress (fraction of steps)", ylabel="training loss, mean of 10 steps and all seeds")
    curves.legend(fontsize=8)
    curves.grid(alpha=0.25)
    losses = [name for name, _, _ in METRICS if name.startswith("loss ") and name != "loss spikes"]
    others = [arm for arm in compared if arm != REFERENCE]
    for number, arm in enumerate(others):
        figures = [compared[arm][name] for name in losses]
        places = [place + (number - len(others) / 2) * 0.15 for place in range(len(losses))]
        widths = [item["half_width"] or 0.0 for item in figures]
        bars.errorbar([item["difference"] for item in figures], places, xerr=widths, fmt="o", markersize=4, label=arm)
    bars.axvline(0.0, color="black", linewidth=0.8)
    bars.set_yticks(range(len(losses)), losses)
    bars.invert_yaxis()
    bars.set(xlabel=f"held-out loss minus that of {REFERENCE} (95 % intervals over seeds)")
    bars.legend(fontsize=8)
    bars.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
