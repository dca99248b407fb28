"""Causal attention document by document in float32, and its gradients by hand: what every fused kernel computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch


def require(holds: bool, what: str) -> None:
    """What a kernel would refuse or compute otherwise is an error, under python -O too."""
    if not holds:
        raise ValueError(f"a kernel needs: {what}")


def attend(q, k, v, cu_seqlens, scale, window=None, slopes=None) -> torch.Tensor:
    """q [t, n, d], k and v [t, g, d], cu_seqlens [documents + 1], window: tokens seen, slopes float32 [n] -> as q."""
    out = torch.empty_like(q)
    for inside in _documents(cu_seqlens):
        weights, values = _weights(q[inside], k[inside], scale, window, slopes), _wide(v[inside], q.shape[1])
        out[inside] = (weights @ values).transpose(0, 1).to(q.dtype)
    return out


def attend_backward(grad, q, k, v, cu_seqlens, scale, window=None, slopes=None) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k and v, rounded once to their types."""
    of_q, of_k, of_v = (torch.empty_like(tensor) for tensor in (q, k, v))
    heads, groups = q.shape[1], k.shape[1]

    def folded(wide: torch.Tensor) -> torch.Tensor:
        return wide.reshape(groups, heads // groups, *wide.shape[1:]).sum(1).transpose(0, 1)

    for inside in _documents(cu_seqlens):
        weights = _weights(q[inside], k[inside], scale, window, slopes)
        outer = grad[inside].reshape(q[inside].shape).float().transpose(0, 1)
        of_v[inside] = folded(weights.transpose(1, 2) @ outer).to(v.dtype)
        of_weights = outer @ _wide(v[inside], heads).transpose(1, 2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        of_q[inside] = (of_scores @ _wide(k[inside], heads)).transpose(0, 1).to(q.dtype)
        of_k[inside] = folded(of_scores.transpose(1, 2) @ q[inside].float().transpose(0, 1)).to(k.dtype)
    return of_q, of_k, of_v


def _documents(cu_seqlens: torch.Tensor) -> Iterator[slice]:
    bounds = cu_seqlens.tolist()
    yield from (slice(begin, end) for begin, end in itertools.pairwise(bounds) if end > begin)


def _wide(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[t, g, d] -> float32 [n, t, d]."""
    return tensor.float().repeat_interleave(heads // tensor.shape[1], 1).transpose(0, 1)


def _weights(q, k, scale, window, slopes) -> torch.Tensor:
    """Softmax of the scores of one document, float32 [n, t, t]."""
    scores = q.float().transpose(0, 1) @ _wide(k, q.shape[1]).transpose(1, 2) * scale
    position = torch.arange(q.shape[0])
    ahead = position[None, :] - position[:, None]
    if slopes is not None:
        scores = scores + slopes.float()[:, None, None] * ahead
    hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1)
