"""What each rank did alone with a checkpoint, told to all ranks.

A collective of training fails after `runtime.distributed_timeout_minutes`, because by then a rank is lost. A rank that still
writes or reads its share is only slow: ranks that are done wait for it here, in a group on the host with a limit of its own.
"""

from __future__ import annotations

import datetime
import functools
from typing import Any

import torch.distributed as dist


def tell_all_ranks(outcome: Any, limit_s: float) -> list[Any]:
    """Every rank's `outcome`, by rank. limit_s: how long a rank may be behind, the same on all ranks.

    Raises: RuntimeError when a rank is lost, or further behind.
    """
    if dist.get_world_size() == 1:
        return [outcome]
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome, group=_group(limit_s))
    return outcomes


@functools.cache  # made by all ranks together, at the first use
def _group(limit_s: float) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=limit_s))
