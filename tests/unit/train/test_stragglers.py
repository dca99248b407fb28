"""A rank is named when it is late step after step, beside ranks that do the same work."""

from __future__ import annotations

import pytest

from megatron_huatuo.train.observers.stragglers import Straggler, StragglerWatch


def find(steps: list[list[float]], num_stages: int = 1) -> Straggler | None:
    watch = StragglerWatch(num_stages)
    for step in steps:
        watch.add(step)
    return watch.find()


def test_the_slow_rank_is_named_with_its_time_and_the_quickest() -> None:
    assert find([[0.5, 0.5, 0.9, 0.5]] * 10) == Straggler(rank=2, seconds=0.9, fastest_s=0.5)


@pytest.mark.parametrize(
    "steps",
    [
        [[0.5, 0.55, 0.6]] * 10,  # within a quarter
        [[0.001, 0.005]] * 10,  # not worth naming
        [[0.5, 0.9]] * 9,  # too few
        [[0.5, 0.9]] * 4 + [[0.5, 0.5]] * 16,  # a hiccup
        [[0.5, 9.0]] * 20 + [[0.5, 0.5]] * 20,  # long ago
        [[0.5]] * 20,
    ],
)
def test_ranks_that_are_alike_are_not_named(steps: list[list[float]]) -> None:
    assert find(steps) is None


def test_only_ranks_of_one_pipeline_stage_are_compared() -> None:
    assert find([[0.5, 0.5, 0.9, 0.9]] * 10, num_stages=2) is None
    assert find([[0.5, 0.5, 0.9, 1.5]] * 10, num_stages=2) == Straggler(rank=3, seconds=1.5, fastest_s=0.9)
