"""Layers of Transformer Engine: fused norms and matrix products, fp8, packed attention. GPUs only.

With `attention_backend`, the only file that asks for Transformer Engine; megatron-core does the importing itself.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention, TENorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec

FinalNorm = TENorm


def layer_spec(*, qk_norm: bool = False) -> ModuleSpec:
    """Layer of Transformer Engine with its own core attention, which reads windows from the configuration."""
    return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=qk_norm)


def initialize_overlap(*, tokens: int, hidden_size: int, tensor_model_parallel_size: int, fp8: bool) -> None:
    """Make the buffers by which `parallel.tp_comm_overlap` overlaps; once per process, after the process groups.

    tokens: of a micro-batch, before sequence parallelism divides them. The signature is that of Transformer Engine 2.9 to
    2.11, which megatron-core 0.16 asks for; called as in Megatron-LM's training/initialize.py.
    """
    from transformer_engine.pytorch.module import base

    if torch.cuda.get_device_capability() < (9, 0):  # no multicast between GPUs: without this word it refuses
        os.environ.setdefault("UB_SKIPMC", "1")
    modes = base.UserBufferQuantizationMode
    base.initialize_ub(
        shape=[tokens, hidden_size],
        tp_size=tensor_model_parallel_size,
        quantization_modes=[modes.FP8 if fp8 else modes.NONE],
        bootstrap_backend="nccl",
    )


def destroy_overlap() -> None:
    """Free the buffers of `initialize_overlap`, before the process groups end that they were made with."""
    from transformer_engine.pytorch.module import base

    base.destroy_ub()


class PackedTEAttention(TEDotProductAttention):
    """Takes the project's packed rows (sbhd with cumulative lengths) and gives Transformer Engine its thd layout.

    Rotary embeddings have been applied to rows by then, so that thd's own, which synchronises the host in every layer,
    is never used and micro-batches may hold several rows.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType = AttnMaskType.causal,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """query [s, b, n, d]; key, value [s, b, g, d] -> context [s, b, n · d]."""
        if packed_seq_params is None:
            return super().forward(query, key, value, None, AttnMaskType.causal, **others)
        length, batch = query.shape[:2]
        flat = [
            _at_start(tensor.transpose(0, 1).reshape(batch * length, *tensor.shape[2:]))
            for tensor in (query, key, value)
        ]
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=packed_seq_params.cu_seqlens_q,
            cu_seqlens_kv=packed_seq_params.cu_seqlens_kv,
            max_seqlen_q=packed_seq_params.max_seqlen_q,
            max_seqlen_kv=packed_seq_params.max_seqlen_kv,
        )
        context = super().forward(*flat, None, AttnMaskType.causal, packed_seq_params=packed, **others)
        return context.reshape(batch, length, -1).transpose(0, 1).contiguous()


def _at_start(tensor: torch.Tensor) -> torch.Tensor:
    """Transformer Engine looks for a layout in the places of q, k and v, and knows none that begins inside another's memory."""
    return tensor.clone(memory_format=torch.contiguous_format) if tensor.storage_offset() else tensor
