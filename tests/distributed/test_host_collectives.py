"""Sharing gradients and gathering weights in place, as megatron-core calls them, against sums by hand."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.runner import run_ranks

NUMBERS = 36


def _share_and_gather(async_op: bool) -> tuple[bool, bool]:
    """One rank: whether its share is the sum over ranks, and whether all shares came back."""
    from megatron.core.distributed import param_and_grad_buffer

    from megatron_huatuo.parallel import host

    host.enable_host()
    host._EXCHANGED = 5  # several messages a share, the last one shorter
    rank, ranks = dist.get_rank(), dist.get_world_size()
    gradients = torch.arange(float(NUMBERS)) + 100 * rank
    share = gradients.chunk(ranks)[rank]
    with dist.distributed_c10d._coalescing_manager(dist.group.WORLD, async_ops=async_op) as manager:
        param_and_grad_buffer.dist_reduce_scatter_func(
            share, gradients, op=dist.ReduceOp.SUM, group=dist.group.WORLD, async_op=async_op
        )
    if async_op:
        manager.wait()
    total = sum(torch.arange(float(NUMBERS)) + 100 * other for other in range(ranks))
    summed = torch.equal(share, total.chunk(ranks)[rank])
    weights = torch.full((NUMBERS,), -1.0)
    own = weights.chunk(ranks)[rank].fill_(rank)
    param_and_grad_buffer.dist_all_gather_func(weights, own, group=dist.group.WORLD, async_op=async_op)
    return summed, torch.equal(weights, torch.arange(float(ranks)).repeat_interleave(NUMBERS // ranks))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("async_op", [False, True])
def test_every_rank_gets_its_share_of_the_sum_and_all_weights(async_op: bool, ranks: int) -> None:
    assert run_ranks(ranks, _share_and_gather, async_op) == [(True, True)] * ranks
