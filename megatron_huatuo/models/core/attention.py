"""One core attention for packed and plain rows, on top of a kernel that is chosen by what is installed.

Invariant: a token attends to the tokens before it in its own document, in a local layer to the nearest of them alone, and
to nothing else. Documents are given as
`PackedSeqParams(qkv_format="sbhd", cu_seqlens_q=cu, …)`, cu int32 [num_documents + 1] over the batch-major flattened
tokens [b · s] (first 0, last b · s); without them each row is one document.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core.alibi import alibi_slopes
from megatron_huatuo.models.core.decoder_layer import layer_window


class AttendedSegments(NamedTuple):
    """Bounds of the documents in a flattened batch."""

    cu_seqlens: torch.Tensor
    """int32 [num_documents + 1], cumulative lengths."""
    max_seqlen: int
    """Tokens of the longest document."""


Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, AttendedSegments, float, torch.Tensor | None, int | None], torch.Tensor
]
"""(query [t, n, d], key [t, g, d], value [t, g, d], segments, scale, slopes float32 [n] or None, window or None)
-> [t, n, d]. window: tokens that a token attends to, itself included."""


class PackedAttention(MegatronModule):
    """Core attention of megatron-core: queries, keys and values of one tensor-parallel rank to its context."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any = None,
        attention_type: str = "self",
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        *,
        kernel: Kernel,
        alibi: bool = False,
    ) -> None:
        super().__init__(config=config)
        self.kernel = kernel
        self.window = layer_window(config, layer_number)
        self.scale = 1.0 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale
        self.slopes: torch.Tensor | None = None
        if alibi:
            of_all_ranks = alibi_slopes(config.num_attention_heads)
            self.slopes = of_all_ranks.chunk(pg_collection.tp.size())[pg_collection.tp.rank()]

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """query [s, b, n, d]; key, value [s, b, g, d] with n a multiple of g -> context [s, b, n · d].

        `attention_mask` is not read: attention is causal inside documents, whatever the mask.
        """
        length, batch = query.shape[:2]
        if self.slopes is not None and self.slopes.device != query.device:
            self.slopes = self.slopes.to(query.device)
        segments = _segments(packed_seq_params, batch, length, query.device)

        def flat(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.transpose(0, 1).reshape(batch * length, *tensor.shape[2:])

        context = self.kernel(flat(query), flat(key), flat(value), segments, self.scale, self.slopes, self.window)
        return context.reshape(batch, length, -1).transpose(0, 1).contiguous()


def _segments(packed: PackedSeqParams | None, batch: int, length: int, device: torch.device) -> AttendedSegments:
    if packed is None:
        return AttendedSegments(_row_bounds(batch, length, device), length)
    if packed.qkv_format != "sbhd":
        raise ConfigError(f"wrong qkv_format of packed rows: got {packed.qkv_format!r}, need 'sbhd'.")
    return AttendedSegments(packed.cu_seqlens_q, packed.max_seqlen_q)


@functools.lru_cache(maxsize=8)
def _row_bounds(batch: int, length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=device)
