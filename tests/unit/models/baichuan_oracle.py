"""Baichuan2 in plain torch, written from the published facts: what our model and the exported one are held against.

Embedding; layers of RMSNorm, attention with W_pack = rows Q | K | V (each head after head), RMSNorm, SwiGLU; RMSNorm;
logits = h · W̄ᵀ with every row of W̄ of unit length. Positions: rotary (7B) or slope · (j - i) added to the scaled scores
(13B). One document at a time, loops over heads, no caches: slow and easy to read.
"""

from __future__ import annotations

import math

import torch

SLOPES_OF_40_HEADS = [2 ** (-k / 4) for k in range(1, 33)] + [2 ** (-k / 8) for k in range(1, 16, 2)]


def slopes(num_heads: int) -> list[float]:
    """2^floor(log2 n) heads first, the rest every second slope of twice as many."""
    nearest = 1
    while nearest * 2 <= num_heads:
        nearest *= 2
    first = [2 ** (-8 / nearest * k) for k in range(1, nearest + 1)]
    double = [2 ** (-8 / (2 * nearest) * k) for k in range(1, 2 * nearest + 1)]
    return first + double[0::2][: num_heads - nearest]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return wide.to(x.dtype) * weight


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of [tokens, head_dim]: halves are paired, frequency k is theta^(-2k / head_dim)."""
    size = x.size(-1)
    frequency = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = torch.arange(x.size(0), dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    low, high = x[:, : size // 2], x[:, size // 2 :]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: float | None) -> torch.Tensor:
    scores = (q @ k.T).float() / math.sqrt(q.size(-1))
    position = torch.arange(q.size(0))
    if slope is not None:
        scores = scores + slope * (position[None, :] - position[:, None])
    scores = scores.masked_fill(position[None, :] > position[:, None], float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def logits(
    weights: dict[str, torch.Tensor],
    tokens: torch.Tensor,
    *,
    num_layers: int,
    num_heads: int,
    epsilon: float,
    theta: float | None,
) -> torch.Tensor:
    """Logits [tokens, vocabulary] of one document; theta None means ALiBi."""
    x = weights["model.embed_tokens.weight"][tokens]
    of_heads = slopes(num_heads)
    for layer in range(num_layers):
        w = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        normed = rms_norm(x, w["input_layernorm.weight"], epsilon)
        queries, keys, values = (normed @ w["self_attn.W_pack.weight"].T).chunk(3, dim=-1)
        heads = []
        for head, (q, k, v) in enumerate(
            zip(
                queries.chunk(num_heads, -1),
                keys.chunk(num_heads, -1),
                values.chunk(num_heads, -1),
                strict=True,
            )
        ):
            if theta is None:
                heads.append(attend(q, k, v, of_heads[head]))
            else:
                heads.append(attend(rotate(q, theta), rotate(k, theta), v, None))
        x = x + torch.cat(heads, -1) @ w["self_attn.o_proj.weight"].T
        normed = rms_norm(x, w["post_attention_layernorm.weight"], epsilon)
        gate = normed @ w["mlp.gate_proj.weight"].T
        x = x + (torch.nn.functional.silu(gate) * (normed @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    x = rms_norm(x, weights["model.norm.weight"], epsilon)
    head = weights["lm_head.weight"]
    return x @ (head / head.float().norm(dim=-1, keepdim=True).to(head.dtype)).T
