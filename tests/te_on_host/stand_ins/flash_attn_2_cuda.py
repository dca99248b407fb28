"""In place of flash-attn's compiled module: arguments as csrc/flash_attn/flash_api.cpp of 2.8 takes and checks them."""

from __future__ import annotations

import torch

from tests.te_on_host.reference import attend, attend_backward, require
from tests.te_on_host.report import note


def _check(q, k, v, cu_q, cu_k, slopes, longest, causal) -> None:
    require(cu_q.dtype == torch.int32 and cu_q.is_contiguous() and torch.equal(cu_q, cu_k), "cumulative lengths")
    require(q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "the last dimension must be contiguous")
    require(q.size(-1) % 8 == 0 and q.size(-1) <= 256, "head dimension")
    require(q.size(1) % k.size(1) == 0 and k.shape == v.shape and q.size(0) == k.size(0), "heads and groups")
    require(isinstance(longest, int) and int((cu_q[1:] - cu_q[:-1]).max()) <= longest, "longest document")
    require(int(cu_q[0]) == 0 and int(cu_q[-1]) == q.size(0), "documents that cover the rows")
    require(bool(causal), "causal")
    if slopes is not None:
        require(slopes.dtype == torch.float32 and slopes.stride(-1) == 1 and slopes.shape == (q.size(1),), "slopes")


def _window(left: int, right: int, longest: int) -> int | None:
    require(right in (0, -1), f"window to the right {right}")
    return None if left < 0 or left >= longest else left + 1


def varlen_fwd(
    q, k, v, out, cu_q, cu_k, seqused_k, leftpad_k, block_table, slopes, max_q, max_k, dropout, scale, zero_tensors, causal,
    left, right, softcap, return_softmax, generator,
):  # fmt: skip
    """(context, log-sum-exp, probabilities, state of the random numbers)."""
    _check(q, k, v, cu_q, cu_k, slopes, max_q, causal)
    note("flash_attn", "forward", "alibi" if slopes is not None else "no bias", f"{q.size(1)} heads")
    context = attend(q, k, v, cu_q, scale, _window(left, right, max_q), slopes)
    return context, torch.zeros(q.size(1), q.size(0)), torch.empty(0), torch.zeros(2, dtype=torch.int64)


def varlen_bwd(
    dout, q, k, v, out, lse, dq, dk, dv, cu_q, cu_k, slopes, max_q, max_k, dropout, scale, zero_tensors, causal, left, right,
    softcap, deterministic, generator, rng_state,
):  # fmt: skip
    """Writes dq, dk and dv; also returns them and the sums of the softmax."""
    _check(q, k, v, cu_q, cu_k, slopes, max_q, causal)
    note("flash_attn", "backward", "deterministic" if deterministic else "any order")
    grads = attend_backward(dout, q, k, v, cu_q, scale, _window(left, right, max_q), slopes)
    for target, grad in zip((dq, dk, dv), grads, strict=True):
        target.copy_(grad)
    return dq, dk, dv, torch.empty(0)


def _absent(*arguments: object, **options: object) -> None:
    raise NotImplementedError("only the kernels for packed documents are replaced")


fwd = bwd = fwd_kvcache = _absent
