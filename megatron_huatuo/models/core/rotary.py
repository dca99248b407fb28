"""Rotary positions for packed rows.

Invariant: positions run through the whole row. Rotary embeddings are relative and documents are isolated by attention,
so running positions give the same result as positions that restart, and need no table per row.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_huatuo.models.architecture import RopeScaling


class RowRotaryEmbedding(RotaryEmbedding):
    """The stock one sizes its table by the longest document of a packed row; queries are as long as the row. Also, it
    knows Llama 3.1's scaling with its first numbers alone, and one base for all layers."""

    def __init__(
        self,
        *settings: Any,
        scaling: RopeScaling | None = None,
        factor: float = 1.0,
        local_base: float | None = None,
        **others: Any,
    ) -> None:
        """settings, others: as for RotaryEmbedding. factor: positions are divided by it. local_base: of local layers,
        which know neither scaling nor factor; then the angles of both kinds are given, [2, s, 1, 1, d]."""
        super().__init__(*settings, **others)
        if scaling is not None:
            self.inv_freq = self._apply_scaling(vars(self)["inv_freq"], **dataclasses.asdict(scaling))
        if factor != 1:
            self.inv_freq = vars(self)["inv_freq"] / factor
        self._local = RotaryEmbedding(*settings, **{**others, "rotary_base": local_base}) if local_base else None

    def get_emb(self, max_seq_len: int, offset: int = 0) -> torch.Tensor:
        """Angles float32 [max_seq_len, 1, 1, d]; of global and of local layers on a leading axis where they differ."""
        angles = super().get_emb(max_seq_len, offset)
        return angles if self._local is None else torch.stack([angles, self._local.get_emb(max_seq_len, offset)])

    def get_rotary_seq_len(
        self,
        inference_context: Any,
        transformer: Any,
        transformer_input: Any,
        transformer_config: Any,
        packed_seq_params: PackedSeqParams | None = None,
        **others: Any,
    ) -> int:
        """Length of the row in tokens, on every pipeline stage and with sequence parallelism."""
        return super().get_rotary_seq_len(
            inference_context, transformer, transformer_input, transformer_config, None, **others
        )
