"""Baichuan2-7B as a Llama: the same function in a layout that every server runs without remote code.

Rotary positions, RMSNorm and SwiGLU are Llama's already; W_pack becomes three projections, and the normalisation of
the output rows is done once, so the head is a plain one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_family


def llama_architecture(architecture: Architecture) -> Architecture:
    """The Llama that computes what a Baichuan2-7B computes. Raises: ConfigError for ALiBi and other families."""
    llama = get_family(architecture.family).as_llama(architecture)
    if llama is None:
        raise ConfigError(
            f"--llamafy needs Baichuan2 with rotary positions (7B): got family {architecture.family!r} with alibi = "
            f"{architecture.alibi}. Export without it."
        )
    return llama


def fold_head(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, some rows at a time, with the output rows scaled to unit length (in float32 until they are written)."""
    for name, rows in weights:
        yield name, torch.nn.functional.normalize(rows.float()) if name == "lm_head.weight" else rows
