"""Bandwidth of all-reduce and all-gather, over all ranks and inside each node.

Bus bandwidth as nccl-tests define it, which a perfect link would give at any number of ranks n: all-reduce moves
2 (n - 1) / n of the message, all-gather (n - 1) / n of the gathered message.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

_WARM_UPS, _REPEATS = 2, 5


@dataclass(frozen=True)
class Bandwidth:
    """One collective over one kind of group; of several groups, the slowest. straggler: its node, if it stands out."""

    name: str
    seconds: float
    bus_gb_per_s: float
    straggler: str | None = None


def bus_gb_per_s(collective: str, message_bytes: int, ranks: int, seconds: float) -> float:
    """Bus bandwidth; `message_bytes` is what each rank gives. Example: all-reduce of 1 GB by 2 ranks in 1 s is 1 GB/s."""
    moved = 2 * (ranks - 1) / ranks * message_bytes if collective == "all-reduce" else (ranks - 1) * message_bytes
    return moved / seconds / 1e9


def measure_bandwidth(nodes: Mapping[str, list[int]], device: torch.device, message_bytes: int) -> list[Bandwidth]:
    """Medians of five runs, the slowest rank's; every rank must call it with the same arguments."""
    message = torch.ones(message_bytes // 4, dtype=torch.float32, device=device)
    results = []
    for collective in ("all-reduce", "all-gather"):
        seconds = _slowest(_time(collective, message, None))
        rate = bus_gb_per_s(collective, message_bytes, dist.get_world_size(), seconds)
        results.append(Bandwidth(f"{collective}, all ranks", seconds, rate))
    if len(nodes) > 1 and all(len(ranks) > 1 for ranks in nodes.values()):
        groups = {host: dist.new_group(ranks) for host, ranks in nodes.items()}
        results += [_within_nodes(collective, message, nodes, groups) for collective in ("all-reduce", "all-gather")]
    return results


def _within_nodes(
    collective: str, message: torch.Tensor, nodes: Mapping[str, list[int]], groups: Mapping[str, Any]
) -> Bandwidth:
    own = next(host for host, ranks in nodes.items() if dist.get_rank() in ranks)
    seconds = _time(collective, message, groups[own])
    by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, seconds)
    by_node = {host: max(by_rank[rank] for rank in ranks) for host, ranks in nodes.items()}
    slowest = max(by_node, key=lambda host: by_node[host])
    stands_out = by_node[slowest] > 2 * statistics.median(by_node.values())
    rate = bus_gb_per_s(collective, message.nbytes, len(nodes[slowest]), by_node[slowest])
    return Bandwidth(f"{collective}, each node", by_node[slowest], rate, slowest if stands_out else None)


def _slowest(seconds: float) -> float:
    value = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value)


def _time(collective: str, message: torch.Tensor, group: Any) -> float:
    """Median seconds of one collective on this rank."""
    run = _collective(collective, message, group)
    samples = []
    for attempt in range(_WARM_UPS + _REPEATS):
        dist.barrier(group)
        _synchronize(message.device)
        began = time.perf_counter()
        run()
        _synchronize(message.device)
        if attempt >= _WARM_UPS:
            samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def _collective(name: str, message: torch.Tensor, group: Any) -> Callable[[], Any]:
    if name == "all-reduce":
        return lambda: dist.all_reduce(message, group=group)
    gathered = message.new_empty(dist.get_world_size(group) * message.numel())
    return lambda: dist.all_gather_into_tensor(gathered, message, group=group)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
