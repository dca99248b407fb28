"""Which rank keeps the others waiting.

Ranks meet in every step's reduction of gradients. The one that comes last, step after step, is what the others wait for:
slow hardware, a busy host, or a slow disk under its data. Only ranks that do the same work are compared, those of one
pipeline stage; tensor-parallel ranks meet in every layer and are late together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_STEPS, _FEWEST_STEPS = 20, 10
_TIMES_SLOWER = 1.25
_NOT_WORTH_NAMING_S = 0.01


@dataclass(frozen=True)
class Straggler:
    """The slowest rank. seconds: its median time to the reduction; fastest_s: that of the quickest rank of its stage."""

    rank: int
    seconds: float
    fastest_s: float


class StragglerWatch:
    """Remembers the last steps; names a rank when it is late in the middle of them, not by one hiccup.

    num_stages: pipeline stages; rank r belongs to stage r // (ranks / num_stages).
    """

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._steps: deque[Sequence[float]] = deque(maxlen=_STEPS)

    def add(self, seconds_to_reduction: Sequence[float]) -> None:
        """One step: seconds of every rank from the step's begin to the reduction of gradients [ranks]."""
        self._steps.append(seconds_to_reduction)

    def find(self) -> Straggler | None:
        """The rank that is slowest beside a peer of its stage; None when all are alike, or too few steps were seen."""
        if len(self._steps) < _FEWEST_STEPS:
            return None
        seconds = [median(of_rank) for of_rank in zip(*self._steps, strict=True)]
        size = len(seconds) // self._num_stages
        found: Straggler | None = None
        for first in range(0, len(seconds), size):
            stage = seconds[first : first + size]
            slowest, fastest = max(stage), min(stage)
            if slowest > _TIMES_SLOWER * fastest + _NOT_WORTH_NAMING_S and (found is None or slowest > found.seconds):
                found = Straggler(first + stage.index(slowest), slowest, fastest)
        return found
