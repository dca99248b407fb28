"""Sharing gradients and gathering weights in place, against torch's own collectives."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.runner import run_ranks


def _share_and_gather(async_op: bool) -> tuple[bool, bool]:
    """One rank: whether its share is the sum over ranks, and whether all shares came back."""
    from megatron.core.distributed import param_and_grad_buffer

    from megatron_huatuo.host import enable_host

    enable_host()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    gradients = torch.arange(12.0) + 100 * rank
    share = gradients.chunk(ranks)[rank]
    work = param_and_grad_buffer.dist_reduce_scatter_func(
        share, gradients, op=dist.ReduceOp.SUM, group=dist.group.WORLD, async_op=async_op
    )
    if async_op:
        work.wait()
    total = sum(torch.arange(12.0) + 100 * other for other in range(ranks))
    summed = torch.equal(share, total.chunk(ranks)[rank])
    weights = torch.full((12,), -1.0)
    own = weights.chunk(ranks)[rank].fill_(rank)
    param_and_grad_buffer.dist_all_gather_func(weights, own, group=dist.group.WORLD, async_op=async_op)
    return summed, torch.equal(weights, torch.arange(float(ranks)).repeat_interleave(12 // ranks))


@pytest.mark.parametrize("async_op", [False, True])
def test_every_rank_gets_its_share_of_the_sum_and_all_weights(async_op: bool) -> None:
    assert run_ranks(2, _share_and_gather, async_op) == [(True, True), (True, True)]
