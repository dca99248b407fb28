"""GPTModel that computes no logits where nothing is trained: prompts, and the padding of rows.

The output layer is the widest product of a model, its logits the largest tensor; of dialogues and rewritten pairs a
fifth to a half of the positions are prompts. Losses at the positions that are left out are 0.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region


class PackedGPTModel(GPTModel):
    """megatron-core's model; `loss_positions` of a call says where losses are wanted."""

    attention_backend: str
    """Which attention its layers use: one of `attention_backend.BACKENDS`, never "auto"."""
    engine_layers_obstacle: str | None
    """Why its layers are megatron-core's own and not Transformer Engine's; None where they are Transformer Engine's."""
    _loss_positions: torch.Tensor | None = None

    def forward(self, *inputs: Any, loss_positions: torch.Tensor | None = None, **settings: Any) -> torch.Tensor:
        """As GPTModel.forward. loss_positions int64 [t]: ascending numbers of positions of the [L, b] hidden states,
        row-major; None: all of them."""
        self._loss_positions = loss_positions
        return super().forward(*inputs, **settings)

    def _postprocess(self, hidden_states: torch.Tensor, labels: torch.Tensor | None, **settings: Any) -> torch.Tensor:
        positions = self._loss_positions
        if not self.post_process or labels is None or positions is None:
            return super()._postprocess(hidden_states=hidden_states, labels=labels, **settings)
        head = self.output_layer
        is_divided = head.sequence_parallel
        if is_divided:  # positions are those of whole rows; the head then sums its input's gradient by itself
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
            head.sequence_parallel = False
        wanted = hidden_states.flatten(0, 1).index_select(0, positions).unsqueeze(1)
        labels_of_wanted = labels.t().flatten().index_select(0, positions).unsqueeze(0)
        losses = super()._postprocess(hidden_states=wanted, labels=labels_of_wanted, **settings)
        head.sequence_parallel = is_divided
        everywhere = losses.new_zeros(labels.numel()).index_copy(0, positions, losses.flatten())
        return everywhere.view(labels.shape[::-1]).t().contiguous()
