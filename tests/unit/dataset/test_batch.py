"""Rows to tensors: bounds over the flattened batch, places of the loss, and reading ahead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_huatuo.dataset.batch import StepBatches, build_batch
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.row import empty_row
from megatron_huatuo.dataset.row_block import stack_rows
from megatron_huatuo.dataset.rows import PackedRows
from tests.unit.dataset.hand_rows import row_of

CPU = torch.device("cpu")
ROW = row_of([([11, 21, 2], [0, 1, 1], 0), ([12, 2], [0, 1], 1)], 6)


def test_a_batch_of_two_rows_by_hand() -> None:
    batch = build_batch(stack_rows([ROW, empty_row(6, 2)]), CPU)
    assert batch.tokens.tolist() == [[11, 21, 2, 12, 2, 2], [2] * 6]
    packed = batch.packed_seq_params
    assert packed is not None and packed.qkv_format == "sbhd"
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == [0, 3, 5, 6, 12]
    assert packed.cu_seqlens_q.dtype == torch.int32
    assert packed.max_seqlen_q == packed.max_seqlen_kv == 6
    assert batch.source_of_token[0].tolist() == [0, 0, 0, 1, 1, -1]
    assert (batch.tokens.dtype, batch.labels.dtype, batch.loss_mask.dtype) == (torch.int64, torch.int64, torch.float32)


def test_logits_are_wanted_at_every_trained_position_and_at_few_others(sample_blend: Path) -> None:
    rows = PackedRows(sample_blend)
    chosen = [rows.row(0), rows.row(1), empty_row(rows.seq_length, len(rows.source_names))]
    for some in (chosen, chosen[:1], chosen[2:]):
        batch = build_batch(stack_rows(some), CPU)
        positions, trained = batch.loss_positions, torch.nonzero(batch.loss_mask.t().flatten()).flatten()
        assert set(trained.tolist()) <= set(positions.tolist())
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert len(positions) == min(batch.tokens.numel(), max(1, -(-len(trained) // 128)) * 128)


def test_without_isolation_a_row_is_one_sequence() -> None:
    batch = build_batch(stack_rows([ROW]), CPU, isolate_documents=False)
    assert batch.packed_seq_params is None


@pytest.mark.parametrize("jump", [False, True])
def test_steps_read_ahead_give_the_rows_asked_for(sample_blend: Path, jump: bool) -> None:
    rows = PackedRows(sample_blend)
    batches = StepBatches(rows, BatchLayout(4, 2, 0, 1), CPU)
    for consumed in (0, 4, 40, 8) if jump else (0, 4, 8):
        step, waited_s = batches.next_step(consumed)
        assert waited_s >= 0.0
        assert len(step) == 2
        expected = [rows.row(row).tokens.tolist() for row in range(consumed, consumed + 4)]
        assert [row for batch in step for row in batch.tokens.tolist()] == expected
    batches.close()


def test_the_last_batch_is_filled_with_empty_rows(sample_blend: Path) -> None:
    rows = PackedRows(sample_blend)
    batches = StepBatches(rows, BatchLayout(8, 8, 0, 1), CPU)
    [batch], _ = batches.next_step(len(rows) - 3)
    batches.close()
    trained = batch.loss_mask.sum(dim=1)
    assert (trained[:3] > 0).all() and (trained[3:] == 0).all()
