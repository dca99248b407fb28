"""Packed attention with torch's FlexAttention: what a GPU runs where neither Transformer Engine nor flash-attn is there.

Invariant: the mask is described, not stored; blocks in which no document meets itself are skipped. The description is
built once a micro-batch and kind of layer (local or global), and shared by all layers of the kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from megatron_huatuo.models.core.attention import AttendedSegments


@functools.lru_cache(maxsize=2)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


@functools.lru_cache(maxsize=4)  # the tensor itself is the key, so layers of one kind share one mask
def _block_mask(cu_seqlens: torch.Tensor, length: int, window: int | None) -> BlockMask:
    position = torch.arange(length, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    document = torch.searchsorted(cu_seqlens, position, right=True)

    def own_past(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        past = (document[i] == document[j]) & (j <= i)
        return past if window is None else past & (i - j < window)

    # Compiled, no mask of length x length is stored on the way to that of blocks.
    describe = _compiled(create_block_mask) if cu_seqlens.is_cuda else create_block_mask
    return describe(own_past, None, None, length, length, device=cu_seqlens.device)


def attend_with_flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: AttendedSegments,
    scale: float,
    slopes: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Shapes as in `attention.Kernel`. Compiled on a GPU; on a CPU it runs uncompiled, which serves tests alone."""
    attend: Any = _compiled(flex_attention) if query.is_cuda else flex_attention
    score_mod: Any = None
    if slopes is not None:

        def score_mod(score, b, h, i, j):  # type: ignore[no-untyped-def]
            return score + slopes[h] * (j - i)

    context = attend(
        *(tensor.transpose(0, 1)[None] for tensor in (query, key, value)),
        score_mod=score_mod,
        block_mask=_block_mask(segments.cu_seqlens, query.size(0), window),
        scale=scale,
        enable_gqa=query.size(1) != key.size(1),
    )
    return context[0].transpose(0, 1)
