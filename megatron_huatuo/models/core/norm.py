"""RMSNorm of the local layer specification: the stock one refuses sequence parallelism.

Invariant: the weight carries `sequence_parallel`, so that megatron-core sums its gradient over the tensor-parallel
ranks, each of which sees a part of the sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_huatuo.models.core.cpu_kernels import rms_norm


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last axis; any shape [..., hidden_size], dtype of x kept.

    With `layernorm_zero_centered_gamma` of the configuration the factor is 1 + weight, summed in float32.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.is_zero_centered = config.layernorm_zero_centered_gamma
        first = 0.0 if self.is_zero_centered else 1.0
        self.weight = torch.nn.Parameter(torch.full((hidden_size,), first, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = 1 + self.weight.float() if self.is_zero_centered else self.weight
        if x.device.type == "cpu":
            return rms_norm(x, weight, self.eps)
        if self.is_zero_centered:
            return torch.nn.functional.rms_norm(x.float(), (x.size(-1),), weight, self.eps).to(x.dtype)
        return torch.nn.functional.rms_norm(x, (x.size(-1),), weight, self.eps)
