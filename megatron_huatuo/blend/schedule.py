"""The share of every source over the run: as drawn, and the curve that it approaches for many documents.

Invariant: `schedule.csv` counts what the order holds; the curve comes from sizes and priorities alone.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.arrays import map_array
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.manifest import read_manifest

SCHEDULE_CSV, SCHEDULE_PNG = "schedule.csv", "schedule.png"
BINS = 100
RUN_POINTS = 50
_BLOCK = 1 << 24
_LEGEND_ROWS = 24
_CHINESE_FONTS = re.compile(r"CJK|Source Han|WenQuanYi|SimHei|SimSun|YaHei|PingFang|Heiti|Songti|AR PL")

_log = get_logger(__name__)


@dataclass(frozen=True)
class Segment:
    """A stretch of the order that follows one set of priorities."""

    first_entry: int
    """Documents before it."""
    num_draws: NDArray[np.int64]
    """Documents of each source to draw from there on [S]."""
    priorities: NDArray[np.float64]

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "first_entry": self.first_entry,
            "num_draws": self.num_draws.tolist(),
            "priorities": self.priorities.tolist(),
        }

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Segment:
        """From the manifest."""
        return cls(
            content["first_entry"],
            np.array(content["num_draws"], dtype=np.int64),
            np.array(content["priorities"], dtype=np.float64),
        )


def expected_drawn(
    num_draws: NDArray[np.integer],
    priorities: NDArray[np.floating],
    positions: NDArray[np.floating] | NDArray[np.integer],
) -> NDArray[np.float64]:
    """Documents of each source among the first `positions` draws, in the limit of many documents.

    num_draws: n_i [S]; priorities: pi_i [S]; positions: 0 … sum(n) [P]. Returns float64 [P, S].
    Solves sum_i n_i (1 - exp(-pi_i t)) = position for the race time t by bisection on log t; the shares are
    n_i (1 - exp(-pi_i t)) (fluid limit of the multivariate Wallenius law).
    """
    counts = np.asarray(num_draws, dtype=np.float64)
    weights = np.asarray(priorities, dtype=np.float64)
    present = counts > 0
    targets = np.asarray(positions, dtype=np.float64)
    if not present.any():
        return np.zeros((len(targets), len(counts)))
    low = np.full(len(targets), np.log(1e-18 / weights[present].max()))
    high = np.full(len(targets), np.log(800.0 / weights[present].min()))
    for _ in range(100):
        middle = (low + high) / 2
        drawn = -np.expm1(-np.exp(middle)[:, None] * weights) @ counts
        low, high = np.where(drawn < targets, middle, low), np.where(drawn < targets, high, middle)
    result: NDArray[np.float64] = -np.expm1(-np.exp(high)[:, None] * weights) * counts
    return result


@dataclass(frozen=True)
class Schedule:
    """Documents of each source in equal steps of the run."""

    names: list[str]
    bounds: NDArray[np.int64]
    """Packed documents at which the steps begin and end [B + 1]."""
    counts: NDArray[np.int64]
    """Documents of each source in each step [B, S]."""
    expected: NDArray[np.float64]
    """The same in the limit of many documents [B, S]."""

    @classmethod
    def of_rows(cls, names: Sequence[str], order_source: str | os.PathLike[str], segments: list[Segment]) -> Schedule:
        """Count a packed order file in up to 100 steps."""
        order = map_array(order_source)
        bounds = np.linspace(0, len(order), min(BINS, max(len(order), 1)) + 1).round().astype(np.int64)
        counts = np.stack([count_sources(order, a, b, len(names)) for a, b in itertools.pairwise(bounds)])
        drawn = expected_at(segments, bounds, len(names))
        return cls(list(names), bounds, counts, np.diff(drawn, axis=0))

    @property
    def progress(self) -> NDArray[np.float64]:
        """Middle of each step as a fraction of the run [B]."""
        middle: NDArray[np.float64] = (self.bounds[:-1] + self.bounds[1:]) / 2 / max(int(self.bounds[-1]), 1)
        return middle

    @property
    def shares(self) -> NDArray[np.float64]:
        """Fraction of each step's documents [B, S]."""
        return shares_of(self.counts)


def count_sources(order: NDArray[Any], start: int, stop: int, num_sources: int) -> NDArray[np.int64]:
    """Documents of each source in the entries [start, stop) of a packed order [S]."""
    total = np.zeros(num_sources, dtype=np.int64)
    for first in range(int(start), int(stop), _BLOCK):
        total += np.bincount(order[first : min(first + _BLOCK, int(stop))], minlength=num_sources)
    return total


def shares_of(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Rows divided by their sums; an empty row stays zero."""
    shares: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    return shares


def expected_at(segments: list[Segment], positions: NDArray[np.int64], num_sources: int) -> NDArray[np.float64]:
    """Documents of each source before `positions` in the limit of many documents, through all segments [P, S]."""
    total = np.zeros((len(positions), num_sources))
    for index, segment in enumerate(segments):
        end = (
            segments[index + 1].first_entry
            if index + 1 < len(segments)
            else int(segment.num_draws.sum()) + segment.first_entry
        )
        inside = np.clip(positions, segment.first_entry, end) - segment.first_entry
        drawn = expected_drawn(segment.num_draws, segment.priorities, inside)
        total[:, : drawn.shape[1]] += drawn
    return total


def write_schedule(schedule: Schedule, directory: Path) -> list[str]:
    """Write schedule.csv and schedule.png into a directory; returns their names."""
    with atomic_write(directory / SCHEDULE_CSV, "w") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        columns = [f"{kind}:{name}" for kind in ("documents", "share", "limit") for name in schedule.names]
        writer.writerow(["progress", "first_document", *columns])
        limits = shares_of(schedule.expected)
        for row, (progress, start) in enumerate(zip(schedule.progress, schedule.bounds[:-1], strict=True)):
            shares = [f"{value:.6f}" for value in (*schedule.shares[row], *limits[row])]
            writer.writerow([f"{progress:.6f}", int(start), *schedule.counts[row].tolist(), *shares])
    plot_schedule(schedule, directory / SCHEDULE_PNG)
    return [SCHEDULE_CSV, SCHEDULE_PNG]


def write_run_schedule(run_dir: str | os.PathLike[str]) -> Path:
    """Draw RUN_DIR/schedule.png: the blend's schedule with what the run has consumed so far, after its log.jsonl.

    Returns: the picture. Raises: ConfigError where there is no run; DataError where it has logged nothing yet.
    """
    blend = parent_blend(run_dir)
    manifest = read_manifest(blend, "blend")
    names = [source["name"] for source in manifest["sources"]]
    segments = [Segment.from_plain(content) for content in manifest["segments"]]
    row_start = map_array(blend / "row_start.npy")
    order = map_array(blend / "order_source.npy")
    rows = np.unique(np.minimum([0, *consumed_rows_of(Path(run_dir) / "log.jsonl")], len(row_start) - 1))
    if len(rows) > RUN_POINTS + 1:
        rows = rows[np.linspace(0, len(rows) - 1, RUN_POINTS + 1).round().astype(np.int64)]
    entries = row_start[rows]
    if len(entries) < 2:
        raise DataError(f"run has logged no consumed rows yet: {run_dir}. Try again after its first logged iteration.")
    counts = np.stack([count_sources(order, a, b, len(names)) for a, b in itertools.pairwise(entries)])
    progress = (entries[:-1] + entries[1:]) / 2 / len(order)
    picture = Path(run_dir) / SCHEDULE_PNG
    plot_schedule(Schedule.of_rows(names, blend / "order_source.npy", segments), picture, (progress, shares_of(counts)))
    return picture


def parent_blend(run_dir: str | os.PathLike[str]) -> Path:
    """Blend directory that a run's config.yaml names. Raises: ConfigError."""
    path = Path(run_dir) / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Path(content["data"]["blend"])
    except OSError as error:
        raise ConfigError(f"no training run: {path} cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(f"configuration names no blend: need data.blend ({path})") from error


def consumed_rows_of(log: Path) -> list[int]:
    """consumed_train_samples of every line of a log.jsonl; a line that is just being written is left out."""
    if not log.is_file():
        return []
    rows = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(int(json.loads(line)["consumed_train_samples"]))
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def plot_schedule(
    schedule: Schedule,
    path: str | os.PathLike[str],
    points: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    points_name: str = "consumed by the run",
) -> None:
    """Draw the shares (lines), the large-N curve (dashed), and given points, such as a run's actual shares.

    points: progress [P] and shares [P, S].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.07, 0.1, 0.91, 0.82))
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
    with atomic_write(path) as handle:
        figure.savefig(handle, dpi=100, format="png")


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
