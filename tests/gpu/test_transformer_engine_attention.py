"""Transformer Engine's attention on packed rows against attention document by document, outputs and gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType

from megatron_huatuo.models.core.attention import PackedAttention
from megatron_huatuo.models.core.attention_torch import attend_by_document
from megatron_huatuo.models.core.build_model import transformer_config
from megatron_huatuo.parallel.parallel_config import ParallelConfig
from megatron_huatuo.parallel.process_groups import destroy_process_groups, initialize_process_groups
from tests.unit.convert.small_models import SMALL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None, reason="Transformer Engine is not installed"
    ),
]
# Two rows of 512 tokens; documents of very different lengths, one of a single token.
LENGTHS = [1, 300, 211, 2, 489, 21]
ROW = 512


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    initialize_process_groups(ParallelConfig(), torch.device("cuda"))
    yield
    destroy_process_groups()


def _run(attention: Any, tensors: list[torch.Tensor], packed: PackedSeqParams | None) -> list[torch.Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = attention(*leaves, None, AttnMaskType.causal, packed_seq_params=packed)
    output.float().square().sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("is_packed", [True, False])
def test_bf16_error_is_at_most_twice_that_of_plain_attention(one_gpu: None, is_packed: bool) -> None:
    from megatron_huatuo.models.core.transformer_engine import PackedTEAttention

    config = transformer_config(SMALL["llama"], precision="bf16", use_cpu_initialization=False)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    assert parallel_state.get_tensor_model_parallel_world_size() == 1
    arguments = {"attn_mask_type": AttnMaskType.causal, "attention_type": "self", "pg_collection": groups}
    engine = PackedTEAttention(config, 1, **arguments)
    plain = PackedAttention(config, 1, **arguments, kernel=attend_by_document)
    torch.manual_seed(0)
    narrow = [
        torch.randn(ROW, 2, heads, config.kv_channels, device="cuda").bfloat16()
        for heads in (config.num_attention_heads, config.num_query_groups, config.num_query_groups)
    ]
    packed = None
    if is_packed:
        bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
        packed = PackedSeqParams("sbhd", bounds, bounds, max_seqlen_q=max(LENGTHS), max_seqlen_kv=max(LENGTHS))
    exact = _run(plain, [tensor.float() for tensor in narrow], packed)
    reference = _run(plain, narrow, packed)
    for got, rounded, expected in zip(_run(engine, narrow, packed), reference, exact, strict=True):
        error, allowed = (got.float() - expected).norm(), 2 * (rounded.float() - expected).norm()
        assert error <= allowed + 1e-3 * expected.norm()
