"""What a rank of a cluster is: its node, its device, its software."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_huatuo.train.observers.environment import installed_versions

_VARIABLES = ("CUDA_DEVICE_MAX_CONNECTIONS", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_")


@dataclass(frozen=True)
class RankFacts:
    """Facts of one rank. device_id: unique name of its GPU; free_share: of its memory; both None on a CPU."""

    rank: int
    host: str
    device: str
    device_id: str | None
    free_share: float | None
    versions: dict[str, str]
    environment: dict[str, str]


def describe_rank(device: torch.device) -> RankFacts:
    """Facts of this rank."""
    name, device_id, free_share = f"CPU {platform.machine()}", None, None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, device_id = f"{properties.name} {properties.total_memory / 2**30:.1f} GiB", str(properties.uuid)
        free, total = torch.cuda.mem_get_info(device)
        free_share = free / total
    environment = {
        key: value for key, value in sorted(os.environ.items()) if key in _VARIABLES or key.startswith(_PREFIXES)
    }
    return RankFacts(
        dist.get_rank(), socket.gethostname(), name, device_id, free_share, installed_versions(), environment
    )


def nodes_of(facts: Iterable[RankFacts]) -> dict[str, list[int]]:
    """Ranks by node, in the order of the ranks."""
    nodes: dict[str, list[int]] = {}
    for fact in facts:
        nodes.setdefault(fact.host, []).append(fact.rank)
    return nodes


def ranges_of(ranks: Iterable[int]) -> str:
    """Ranks for a person: [0, 1, 2, 5] is "0-2, 5"."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
