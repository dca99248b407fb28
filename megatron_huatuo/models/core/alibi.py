"""ALiBi: attention with linear biases (Press et al., 2022), the positions of Baichuan2-13B.

Invariant: a head's slope follows from its global number, so slices over tensor-parallel ranks agree with the whole.
"""

from __future__ import annotations

import math

import torch


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Slope of each head: float32 [num_heads], all in (0, 1).

    With p = the largest power of two up to num_heads: 2^(-8k/p) for k = 1 … p, then for the remaining heads
    2^(-8k/2p) for k = 1, 3, 5 …

    >>> alibi_slopes(3).tolist()  # p = 2: 2^-4, 2^-8; then k = 1 of 2p = 4: 2^-2
    [0.0625, 0.00390625, 0.25]
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * k / power) for k in range(1, power + 1)]
    slopes += [2.0 ** (-8 * k / (2 * power)) for k in range(1, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32)


def alibi_bias(slopes: torch.Tensor, length: int) -> torch.Tensor:
    """Bias to add to scaled attention scores, causal mask included: float32 [num_heads, length, length].

    Row i, column j: slope · (j - i) for j ≤ i, -inf for j > i.
    """
    position = torch.arange(length, device=slopes.device, dtype=torch.float32)
    distance = position[None, :] - position[:, None]
    distance = distance.masked_fill(distance > 0, float("-inf"))
    return slopes[:, None, None] * distance
