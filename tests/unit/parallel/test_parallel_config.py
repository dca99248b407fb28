"""Splits that cannot work are refused with the values that would."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.parallel.parallel_config import ParallelConfig

YI_34B: dict[str, Any] = {
    "num_layers": 60,
    "num_attention_heads": 56,
    "num_query_groups": 8,
    "ffn_hidden_size": 20480,
    "vocab_size": 64000,
    "seq_length": 4096,
    "num_microbatches": 8,
}


@pytest.mark.parametrize("sizes", [(1, 1, None), (8, 1, None), (8, 4, None), (4, 4, 5), (2, 2, 15)])
def test_splits_that_work_pass(sizes: tuple[int, int, int | None]) -> None:
    tensor, pipeline, virtual = sizes
    ParallelConfig(tensor, pipeline, virtual).validate(**YI_34B)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_model_parallel_size": 0}, "tensor_model_parallel_size: got 0, need 1 or more"),
        ({"tensor_model_parallel_size": 3}, r"got 3, but num_attention_heads is 56\. Use one of \[1, 2, 4, 8\]"),
        ({"pipeline_model_parallel_size": 7}, r"got 7, but there are 60 layers\. Use one of \[1, 2, 3, 4, 5, 6, 10"),
        ({"sequence_parallel": True}, "sequence_parallel: got true with tensor_model_parallel_size 1"),
        ({"virtual_pipeline_model_parallel_size": 2}, "got 2 with 1 stages, need 2 or more of both"),
        (
            {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2},
            r"got 2, but 60 layers over 4 stages do not divide\. Use one of \[3, 5, 15\]",
        ),
        ({"overlap_param_gather": True}, "overlap_param_gather: needs overlap_grad_reduce"),
        ({"tp_comm_overlap": True}, "tp_comm_overlap: needs sequence_parallel"),
    ],
)
def test_splits_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**settings).validate(**YI_34B)


def test_query_groups_may_be_fewer_than_ranks_but_must_divide() -> None:
    few = {**YI_34B, "num_attention_heads": 48, "ffn_hidden_size": 4800, "vocab_size": 48000}
    ParallelConfig(8).validate(**{**few, "num_query_groups": 4})
    with pytest.raises(ConfigError, match="there are 3 query groups"):
        ParallelConfig(8).validate(**{**few, "num_query_groups": 3})


def test_rows_must_divide_over_sequence_parallel_ranks() -> None:
    with pytest.raises(ConfigError, match="rows of 4095 tokens do not divide"):
        ParallelConfig(2).validate(**{**YI_34B, "seq_length": 4095})


def test_interleaving_needs_whole_rounds_of_microbatches() -> None:
    with pytest.raises(ConfigError, match="got 6 per step, need a multiple of 4 stages"):
        ParallelConfig(1, 4, 5).validate(**{**YI_34B, "num_microbatches": 6})


def test_data_parallel_size_is_what_is_left() -> None:
    assert ParallelConfig(2, 3).data_parallel_size(12) == 2
    with pytest.raises(ConfigError, match=r"got 8, need a multiple of .* = 6"):
        ParallelConfig(2, 3).data_parallel_size(8)


def test_sequence_parallelism_follows_tensor_parallelism_unless_said() -> None:
    assert not ParallelConfig(1).uses_sequence_parallel
    assert ParallelConfig(2).uses_sequence_parallel
    assert not ParallelConfig(2, sequence_parallel=False).uses_sequence_parallel
