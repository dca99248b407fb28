"""Rows hold whole documents in nearly the drawing order; the kernel packs as the reference does."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.blend import pack_rows
from megatron_huatuo.blend.row_packing import RowPacker, reference_pack_rows
from megatron_huatuo.errors import ConfigError, DataError

LENGTHS = st.lists(st.integers(1, 60), max_size=200)


@given(LENGTHS, st.integers(1, 90), st.sampled_from([1, 2, 3, 16, 64, 1024]))
@settings(max_examples=150, deadline=None)
def test_rows_hold_every_document_once_within_the_window(lengths: list[int], seq_length: int, window: int) -> None:
    order, row_start = pack_rows(lengths, seq_length, window)
    wanted = reference_pack_rows(np.array(lengths, dtype=np.int64), seq_length, window)
    np.testing.assert_array_equal(order, wanted[0])
    np.testing.assert_array_equal(row_start, wanted[1])
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert row_start[0] == 0 and row_start[-1] == len(lengths)
    assert np.all(np.abs(order - np.arange(len(order))) < window)
    taken = np.minimum(np.array(lengths, dtype=np.int64)[order], seq_length)
    for first, last in itertools.pairwise(row_start):
        assert last > first and taken[first:last].sum() <= seq_length


@given(LENGTHS, st.integers(1, 90), st.sampled_from([1, 3, 16]), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_a_stream_packs_as_the_whole(lengths: list[int], seq_length: int, window: int, chunk: int) -> None:
    packer = RowPacker(seq_length, window)
    values = np.array(lengths, dtype=np.int32)
    parts = [packer.add(values[start : start + chunk]) for start in range(0, len(values), chunk)]
    parts.append(packer.finish())
    order, row_start = pack_rows(values, seq_length, window)
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), order)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), row_start)


def test_window_one_is_next_fit() -> None:
    order, row_start = pack_rows([3, 3, 4, 6, 1], 8, 1)
    assert order.tolist() == [0, 1, 2, 3, 4]
    assert row_start.tolist() == [0, 2, 3, 5]


def test_the_longest_that_fits_fills_the_row() -> None:
    """5 + 4 exceed 8; of the next ones 3 fits better than 2."""
    order, row_start = pack_rows([5, 4, 2, 3, 2], 8, 4)
    assert order.tolist() == [0, 3, 1, 2, 4]
    assert row_start.tolist() == [0, 2, 5]


@pytest.mark.parametrize("length", [8, 9, 100_000, 2**31 - 1])
def test_exact_fit_and_longer_documents_take_a_row_each(length: int) -> None:
    order, row_start = pack_rows(np.array([length, length], dtype=np.int64), 8, 16)
    assert order.tolist() == [0, 1] and row_start.tolist() == [0, 1, 2]


def test_no_documents_give_no_rows() -> None:
    order, row_start = pack_rows([], 8, 16)
    assert len(order) == 0 and row_start.tolist() == [0]


def test_default_window_leaves_little_padding() -> None:
    """Log-normal lengths of mean 300 in rows of 4,096: at most 0.5 %, where next-fit leaves several percent."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(np.log(300) - 0.5, 1.0, 300_000)).astype(np.int32)
    used = np.minimum(lengths, 4096).sum()
    _, row_start = pack_rows(lengths, 4096)
    assert 1 - used / (4096 * (len(row_start) - 1)) <= 0.005
    _, next_fit = pack_rows(lengths, 4096, 1)
    assert 1 - used / (4096 * (len(next_fit) - 1)) > 0.02


def test_lengths_that_are_never_short_leave_little_padding_too() -> None:
    """Abstracts have 146 tokens at least: what the last one leaves of a row must be of use to another one."""
    lengths = np.clip(np.random.default_rng(0).normal(330, 110, 100_000), 146, 724).astype(np.int32)
    _, row_start = pack_rows(lengths, 4096)
    assert 1 - lengths.sum() / (4096 * (len(row_start) - 1)) <= 0.002


def test_room_of_no_use_goes_to_a_longer_document() -> None:
    """After 4, another 4 would leave 2 of 10, which no document has: 6 fills the row."""
    order, row_start = pack_rows([4, 4, 6, 4, 3], 10, 4)
    assert order.tolist() == [0, 2, 1, 3, 4]
    assert row_start.tolist() == [0, 2, 4, 5]


def test_a_document_that_waited_its_whole_window_is_placed() -> None:
    """Long documents and a flood of short ones: the oldest may wait only so long."""
    lengths = np.array([7] * 4 + [1, 7] * 200, dtype=np.int64)
    order, _ = pack_rows(lengths, 8, 5)
    assert np.all(np.abs(order - np.arange(len(order))) < 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([3, 0, 2], 8, 4), DataError, "wrong length of document 1: got 0 tokens, need at least 1"),
        (([3, -5], 8, 4), DataError, "wrong length of document 1: got -5 tokens"),
        (([3.5], 8, 4), DataError, "wrong document_lengths: got float64"),
        (([[3]], 8, 4), DataError, "wrong document_lengths: got int64"),
        (([3], 0, 4), ConfigError, "wrong seq_length: got 0, need a whole number from 1 to"),
        (([3], 8, 0), ConfigError, "wrong window: got 0, need a whole number from 1 to"),
        (([3], 8.0, 4), ConfigError, "wrong seq_length: got 8.0"),
    ],
)
def test_bad_packing_input_is_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack_rows(*arguments)
