"""A flat range of a tensor is few rectangles, which hold its values in their order."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_huatuo.checkpoint.optimizer_ranges import rectangles


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=4)))
    start = draw(st.integers(0, math.prod(shape)))
    return shape, start, draw(st.integers(start, math.prod(shape)))


@given(ranges())
def test_rectangles_are_the_range(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, end = case
    tensor = np.arange(math.prod(shape)).reshape(shape)
    found = rectangles(shape, start, end)
    assert len(found) <= max(1, 2 * len(shape) - 1)
    parts = [tensor[tuple(slice(at, at + size) for at, size in zip(*part, strict=True))] for part in found]
    assert np.concatenate([[], *(part.reshape(-1) for part in parts)]).tolist() == list(range(start, end))


def test_whole_rows_are_one_rectangle_and_a_range_within_a_row_another() -> None:
    assert rectangles((6, 5, 7), 35, 105) == [((1, 0, 0), (2, 5, 7))]
    assert rectangles((6, 5, 7), 36, 41) == [((1, 0, 1), (1, 1, 5))]
    assert rectangles((6, 5, 7), 83, 142) == [
        ((2, 1, 6), (1, 1, 1)),
        ((2, 2, 0), (1, 3, 7)),
        ((3, 0, 0), (1, 5, 7)),
        ((4, 0, 0), (1, 1, 2)),
    ]
