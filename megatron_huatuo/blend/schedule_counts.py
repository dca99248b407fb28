"""The share of every source over the run: as drawn, and the curve that it approaches for many documents.

Invariant: counts come from the order alone, the curve from sizes and priorities alone.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.storage.arrays import map_array

BINS = 100
_BLOCK = 1 << 24


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
