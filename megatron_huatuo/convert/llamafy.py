"""Baichuan2-7B as a Llama: the same function in a layout that every server runs without remote code.

Rotary positions, RMSNorm and SwiGLU are Llama's already; W_pack becomes three projections, and the normalisation of
the output rows is done once, so the head is a plain one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_family

_PIECE_BYTES = 64_000_000


def llama_architecture(architecture: Architecture) -> Architecture:
    """The Llama that computes what a Baichuan2-7B computes. Raises: ConfigError for ALiBi and other families."""
    llama = get_family(architecture.family).as_llama(architecture)
    if llama is None:
        raise ConfigError(
            f"--llamafy needs Baichuan2 with rotary positions (7B): got family {architecture.family!r} with alibi = "
            f"{architecture.alibi}. Export without it."
        )
    return llama


def fold_head(
    tensors: Iterable[tuple[str, Sequence[torch.Tensor]]],
) -> Iterator[tuple[str, Sequence[torch.Tensor]]]:
    """The weights, as row blocks, with the output rows scaled to unit length (in float32 until they are written)."""
    for name, blocks in tensors:
        yield name, _UnitRows(blocks) if name == "lm_head.weight" else blocks


class _UnitRows(Sequence[torch.Tensor]):
    """Row blocks of unit rows, made when they are asked for: the whole of them takes four times a bfloat16 head's memory."""

    def __init__(self, blocks: Sequence[torch.Tensor]) -> None:
        self._pieces = [
            piece for block in blocks for piece in block.split(max(1, _PIECE_BYTES // (4 * block[0].numel())))
        ]

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: Any) -> Any:
        return torch.nn.functional.normalize(self._pieces[index].float())
