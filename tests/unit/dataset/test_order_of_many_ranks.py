"""The data order of up to 512 data-parallel ranks over a full pass: every row once, in the order of the blend."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_huatuo.dataset.batch_layout import BatchLayout


def rows_of_steps(
    ranks: int, global_batch_size: int, micro_batch_size: int, first_step: int, last_step: int
) -> np.ndarray:
    """Row numbers that the ranks read: [steps, ranks, rows of a rank a step], each rank asked by itself."""
    layouts = [BatchLayout(global_batch_size, micro_batch_size, rank, ranks) for rank in range(ranks)]
    per_rank = [
        [
            [row for part in range(layout.num_microbatches) for row in layout.rows(step * global_batch_size, part)]
            for step in range(first_step, last_step)
        ]
        for layout in layouts
    ]
    return np.array(per_rank).transpose(1, 0, 2)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.parametrize("ranks", [1, 8, 64, 256, 512])
def test_ranks_read_every_row_of_a_pass_once(ranks: int, micro_batch_size: int) -> None:
    """100 steps of 1,024 rows: disjoint between ranks and steps, complete, and each step the next 1,024 rows."""
    rows = rows_of_steps(ranks, 1024, micro_batch_size, 0, 100)
    assert rows.shape == (100, ranks, 1024 // ranks)
    assert np.array_equal(np.sort(rows.reshape(100, 1024), axis=1), np.arange(102_400).reshape(100, 1024))


@pytest.mark.parametrize("num_rows", [1, 511, 512, 513, 51_200, 51_201])
def test_only_the_last_step_reads_beyond_the_last_row(num_rows: int) -> None:
    """What lies beyond the last row is padding, so a pass that does not divide loses nothing and repeats nothing."""
    steps = -(-num_rows // 512)
    rows = rows_of_steps(512, 512, 1, 0, steps).ravel()
    assert len(np.unique(rows)) == len(rows)
    assert np.isin(np.arange(num_rows), rows).all()
    assert (rows >= num_rows).sum() == steps * 512 - num_rows < 512


def test_a_pass_that_changes_its_ranks_on_the_way_is_the_same_pass() -> None:
    """512 ranks, then 64 after a resume, then 256."""
    parts = [
        rows_of_steps(ranks, 1024, micro_batch_size, first, last).reshape(last - first, 1024)
        for ranks, micro_batch_size, first, last in ((512, 2, 0, 7), (64, 4, 7, 30), (256, 1, 30, 50))
    ]
    rows = np.sort(np.concatenate(parts), axis=1)
    assert np.array_equal(rows, np.arange(50 * 1024).reshape(50, 1024))
