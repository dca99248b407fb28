"""The schedule as files: schedule.csv, and schedule.png with what a run has consumed so far as dots."""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.learning_rate import BlendRates, ScheduleConfig
from megatron_huatuo.blend.schedule_counts import Schedule, Segment, count_sources, shares_of
from megatron_huatuo.errors import DataError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.blend_files import ORDER_SOURCE, BlendReader
from megatron_huatuo.storage.run_files import blend_of_run, read_log, read_run_config

SCHEDULE_CSV, SCHEDULE_PNG = "schedule.csv", "schedule.png"
RUN_POINTS = 50
_LEGEND_ROWS = 24
_CHINESE_FONTS = re.compile(r"CJK|Source Han|WenQuanYi|SimHei|SimSun|YaHei|PingFang|Heiti|Songti|AR PL")

_log = get_logger(__name__)


def write_schedule(schedule: Schedule, directory: Path, rates: BlendRates | None = None) -> list[str]:
    """Write schedule.csv and schedule.png into a directory; returns their names. rates: for a second panel."""
    with atomic_write(directory / SCHEDULE_CSV, "w") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        columns = [f"{kind}:{name}" for kind in ("documents", "share", "limit") for name in schedule.names]
        writer.writerow(["progress", "first_document", *columns])
        limits = shares_of(schedule.expected)
        for row, (progress, start) in enumerate(zip(schedule.progress, schedule.bounds[:-1], strict=True)):
            shares = [f"{value:.6f}" for value in (*schedule.shares[row], *limits[row])]
            writer.writerow([f"{progress:.6f}", int(start), *schedule.counts[row].tolist(), *shares])
    plot_schedule(schedule, directory / SCHEDULE_PNG, rates=rates)
    return [SCHEDULE_CSV, SCHEDULE_PNG]


def write_run_schedule(run_dir: str | os.PathLike[str]) -> Path:
    """Draw RUN_DIR/schedule.png: the blend's schedule with what the run has consumed so far, after its log.jsonl.

    Returns: the picture. Raises: ConfigError where there is no run; DataError where it has logged nothing yet.
    """
    blend = BlendReader(blend_of_run(run_dir))
    segments = [Segment.from_plain(content) for content in blend.manifest["segments"]]
    consumed = [entry["consumed_train_samples"] for entry in read_log(run_dir) if "consumed_train_samples" in entry]
    rows = np.unique(np.minimum([0, *consumed], len(blend)))
    if len(rows) > RUN_POINTS + 1:
        rows = rows[np.linspace(0, len(rows) - 1, RUN_POINTS + 1).round().astype(np.int64)]
    entries = blend.row_start[rows]
    if len(entries) < 2:
        raise DataError(f"run has logged no consumed rows yet: {run_dir}. Try again after its first logged iteration.")
    counts = np.stack(
        [count_sources(blend.order_source, a, b, len(blend.source_names)) for a, b in itertools.pairwise(entries)]
    )
    progress = (entries[:-1] + entries[1:]) / 2 / len(blend.order_source)
    picture = Path(run_dir) / SCHEDULE_PNG
    drawn = Schedule.of_rows(blend.source_names, blend.directory / ORDER_SOURCE, segments)
    plot_schedule(drawn, picture, (progress, shares_of(counts)), rates=_rates_of_run(blend, read_run_config(run_dir)))
    return picture


def _rates_of_run(blend: BlendReader, config: Mapping[str, Any]) -> BlendRates:
    """With the run's own schedule; what config.yaml leaves out has its default."""
    known = {field.name for field in dataclasses.fields(ScheduleConfig)}
    schedule = ScheduleConfig(**{key: value for key, value in config.get("schedule", {}).items() if key in known})
    batch = config.get("training", {}).get("global_batch_size", 1)
    return BlendRates.of_blend(blend, schedule, batch, peak_lr=config.get("optimizer", {}).get("lr", 1.0))


def plot_schedule(
    schedule: Schedule,
    path: str | os.PathLike[str],
    points: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    points_name: str = "consumed by the run",
    *,
    rates: BlendRates | None = None,
) -> None:
    """Draw the shares (lines), the large-N curve (dashed), and given points, such as a run's actual shares.

    points: progress [P] and shares [P, S]. rates: for a second panel, the learning rate over the run with its mean for each
    source.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5 if rates is None else 8))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.07, 0.1, 0.91, 0.82) if rates is None else (0.07, 0.44, 0.91, 0.52))
    shares, limits = schedule.shares, shares_of(schedule.expected)
    family = None if all(map(_is_simple, schedule.names)) else _chinese_font()
    for number, name in enumerate(schedule.names):
        colour = f"C{number % 10}"
        label = name if family or _is_simple(name) else f"source {number}"
        axes.plot(schedule.progress, shares[:, number], color=colour, label=label, linewidth=1.6)
        axes.plot(schedule.progress, limits[:, number], color=colour, linestyle="--", linewidth=0.9, alpha=0.7)
        if points is not None:
            axes.plot(points[0], points[1][:, number], color=colour, linestyle="", marker=".", markersize=5)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="progress (fraction of documents)", ylabel="share of documents")
    dots = f", dots: {points_name}" if points is not None else ""
    axes.set_title(f"Share of each source (solid: drawn, dashed: limit of many documents{dots})", fontsize=10)
    axes.grid(alpha=0.25)
    if len(schedule.names) <= _LEGEND_ROWS:
        font = {"family": family, "size": 8} if family else {"size": 8}
        axes.legend(loc="upper center", ncols=min(5, len(schedule.names)), prop=font)
    if rates is not None:
        labels = [
            name if family or _is_simple(name) else f"source {number}" for number, name in enumerate(schedule.names)
        ]
        _plot_rates(figure, rates, labels, family)
    with atomic_write(path) as handle:
        figure.savefig(handle, dpi=100, format="png")


def _plot_rates(figure: Any, rates: BlendRates, labels: list[str], family: str | None) -> None:
    """Below: the rate over the run, and beside it one bar for each source."""
    curve, bars = figure.add_axes((0.07, 0.07, 0.42, 0.27)), figure.add_axes((0.68, 0.07, 0.3, 0.27))
    progress = np.linspace(0, 1, 400)
    curve.plot(progress, rates.shares(progress), color="black", linewidth=1.4)
    curve.set(xlim=(0, 1), ylim=(0, 1.05), xlabel="progress (fraction of steps)", ylabel="share of the peak")
    curve.set_title(f"Learning rate ({rates.schedule.describe()})", fontsize=9)
    means = [rate.mean_over_draws for rate in rates.rates]
    places = np.arange(len(labels))
    bars.barh(places, np.nan_to_num(means), color=[f"C{number % 10}" for number in range(len(labels))])
    for place, mean in zip(places, means, strict=True):
        bars.text(np.nan_to_num(mean) + 0.02, place, "-" if np.isnan(mean) else f"{mean:.2f}", va="center", fontsize=7)
    font = {"family": family} if family else {}
    bars.set_yticks(places, labels if len(labels) <= _LEGEND_ROWS else [""] * len(labels), fontsize=7, **font)
    bars.set(xlim=(0, 1.15), xlabel="mean over draws, share of the peak")
    bars.invert_yaxis()
    bars.set_title("What each source receives", fontsize=9)
    for axes in (curve, bars):
        axes.grid(alpha=0.25)


@functools.lru_cache(maxsize=1)
def _chinese_font() -> str | None:
    """A font of this machine that has Chinese characters; without one, such sources are numbered in the picture."""
    from matplotlib import font_manager

    known = sorted({font.name for font in font_manager.fontManager.ttflist if _CHINESE_FONTS.search(font.name)})
    if not known:
        _log.warning(
            "no installed font has Chinese characters: schedule.png calls such sources 'source N', N being their place in "
            "manifest.json. Install one, for instance Noto Sans CJK."
        )
    return known[0] if known else None


def _is_simple(name: str) -> bool:
    """Whether matplotlib's own font has all characters: those before the CJK blocks."""
    return all(character < "\u2e80" for character in name)
