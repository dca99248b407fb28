"""Packed attention with flash-attn's variable-length kernel, ALiBi included. The only file that imports flash_attn."""

from __future__ import annotations

import torch
from flash_attn import flash_attn_varlen_func

from megatron_huatuo.models.core.attention import AttendedSegments


def attend_with_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: AttendedSegments,
    scale: float,
    slopes: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Shapes as in `attention.Kernel`; bf16 on a GPU. flash-attn's bias is slope · (j - i) too, summed in float32. Its
    backward pass adds atomically, in any order, unless torch is asked for deterministic algorithms."""
    return flash_attn_varlen_func(
        query,
        key,
        value,
        segments.cu_seqlens,
        segments.cu_seqlens,
        segments.max_seqlen,
        segments.max_seqlen,
        softmax_scale=scale,
        causal=True,
        alibi_slopes=slopes,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
