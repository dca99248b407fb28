"""Baichuan2-7B as a Llama: the same function in a layout that every server runs without remote code.

Rotary positions, RMSNorm and SwiGLU are Llama's already; W_pack becomes three projections, and the normalisation of
the output rows is done once, so the head is a plain one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.model.architecture import Architecture


def llama_architecture(architecture: Architecture) -> Architecture:
    """The Llama that computes what a Baichuan2-7B computes. Raises: ConfigError for ALiBi and other families."""
    if architecture.family != "baichuan2" or architecture.alibi:
        raise ConfigError(
            f"--llamafy needs Baichuan2 with rotary positions (7B): got family {architecture.family!r} with alibi = "
            f"{architecture.alibi}. Export without it."
        )
    return dataclasses.replace(architecture, family="llama", norm_head=False)


def fold_head(tensors: Iterable[tuple[str, list[torch.Tensor]]]) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """The weights, as row blocks, with the output rows scaled to unit length (in float32 until they are written)."""
    for name, blocks in tensors:
        if name == "lm_head.weight":
            blocks = [torch.nn.functional.normalize(block.float()) for block in blocks]
        yield name, blocks
