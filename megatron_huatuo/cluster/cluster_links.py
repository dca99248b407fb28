"""Bandwidth between nodes, pair by pair: a collective over all ranks says that something is slow, this says what.

The first ranks of two nodes send each other a message at the same time, all pairs of a round side by side. A node is slow
when it is so with every partner, a link when only that pair is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

_ROUNDS = 5
_WARM_UPS, _REPEATS = 1, 3


@dataclass(frozen=True)
class NodeLinks:
    """Seconds of one exchange by pair of nodes; slow: names that stand out, such as "node-7" or "node-2 - node-3"."""

    seconds: dict[tuple[str, str], float]
    slow: list[str]


def rounds_of_pairs(nodes: int, rounds: int = _ROUNDS) -> list[list[tuple[int, int]]]:
    """Pairs of each round; every node is in one pair a round (with an odd number one rests), and no pair comes twice.

    Example: 4 nodes meet in [[(0, 3), (1, 2)], [(0, 2), (1, 3)], [(0, 1), (2, 3)]].
    """
    circle = list(range(nodes + nodes % 2))
    found = []
    for _ in range(min(rounds, len(circle) - 1)):
        pairs = [(circle[i], circle[-1 - i]) for i in range(len(circle) // 2)]
        found.append(sorted((min(pair), max(pair)) for pair in pairs if max(pair) < nodes))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def stand_out(seconds: Mapping[tuple[str, str], float]) -> list[str]:
    """Nodes, then pairs of other nodes, that take more than twice as long as is usual.

    Usual is the middle of the nodes' best times (the lower of two): with one slow node of three, two pairs of three are
    slow, but two nodes of three have a quick partner.
    """
    best: dict[str, float] = {}
    for pair, taken in seconds.items():
        for node in pair:
            best[node] = min(taken, best.get(node, taken))
    limit = 2 * statistics.median_low(best.values())
    slow = [node for node, taken in best.items() if taken > limit]
    pairs = [f"{a} - {b}" for (a, b), taken in seconds.items() if taken > limit and not {a, b} & set(slow)]
    return slow + pairs


def measure_links(nodes: Mapping[str, list[int]], device: torch.device, message_bytes: int) -> NodeLinks:
    """Medians of three exchanges, both ways at once; every rank must call it with the same arguments.

    nodes: ranks by node, at least two. Cost: up to 5 rounds of 4 exchanges.
    """
    names = list(nodes)
    leaders = [ranks[0] for ranks in nodes.values()]
    own: dict[tuple[str, str], float] = {}
    for pairs in rounds_of_pairs(len(names)):
        mine = next((pair for pair in pairs if dist.get_rank() in (leaders[pair[0]], leaders[pair[1]])), None)
        partner = None if mine is None else leaders[mine[0]] + leaders[mine[1]] - dist.get_rank()
        taken = _exchange(partner, device, message_bytes)
        if mine is not None:
            own[names[mine[0]], names[mine[1]]] = taken
    by_rank: list[dict[tuple[str, str], float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, own)
    seconds: dict[tuple[str, str], float] = {}
    for measured in by_rank:
        for pair, taken in measured.items():
            seconds[pair] = max(taken, seconds.get(pair, 0.0))
    return NodeLinks(seconds, stand_out(seconds))


def _exchange(partner: int | None, device: torch.device, message_bytes: int) -> float:
    """Median seconds of an exchange with another rank; ranks without a partner only wait with the others."""
    samples = []
    if partner is not None:
        sent = torch.ones(message_bytes // 4, dtype=torch.float32, device=device)
        received = torch.empty_like(sent)
    for attempt in range(_WARM_UPS + _REPEATS):
        dist.barrier()
        if partner is None:
            continue
        began = time.perf_counter()
        both = [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
        for request in dist.batch_isend_irecv(both):
            request.wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if attempt >= _WARM_UPS:
            samples.append(time.perf_counter() - began)
    return statistics.median(samples) if samples else 0.0
