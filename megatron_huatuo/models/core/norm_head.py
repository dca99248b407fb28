"""NormHead, the output layer of Baichuan2: logits = h · normalize(W)ᵀ.

Invariant: the stored weight is never overwritten; it is normalised anew in every forward pass, in training and in
evaluation alike, and the gradient flows through the normalisation. A vocabulary row lies whole on one tensor-parallel
rank, so no communication is added.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear


class NormHead(ColumnParallelLinear):
    """Output layer whose vocabulary rows have unit length (no scale, no bias)."""

    @classmethod
    def from_linear(cls, linear: ColumnParallelLinear) -> NormHead:
        """Take over the weight of a plain output layer, with what megatron-core has marked on it."""
        head = cls(
            linear.input_size,
            linear.output_size,
            config=linear.config,
            init_method=linear.config.init_method,
            bias=False,
            gather_output=linear.gather_output,
            skip_weight_param_allocation=True,
            tp_group=linear.tp_group,
        )
        head.weight = linear.weight
        # The fused kernel writes into the gradient of the weight that it is given, here a product of the stored one.
        head.gradient_accumulation_fusion = False
        return head

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, Any]:
        """input_ [s, b, hidden] -> (logits [s, b, vocabulary / TP], None)."""
        return super().forward(input_, F.normalize(self.weight), runtime_gather_output)
