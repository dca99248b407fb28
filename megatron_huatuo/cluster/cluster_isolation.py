"""Does the attention of every rank keep the documents of a row apart? The proof that each start of a run repeats.

Invariant: each rank tries its own attention, alone; a rank that fails is named to all.
"""

from __future__ import annotations

import dataclasses
import socket
import time

import torch
import torch.distributed as dist

from megatron_huatuo.cluster.cluster_settings import Finding
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.isolation import prove_backend
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.parallel.host import enable_host

# Backends are chosen by the kind of positions, and look at the size of a head: the recipe's, with rotary positions and ALiBi.
_BACKBONES = ("baichuan2-7b", "baichuan2-13b")
_HEADS = 8


def check_isolation(attention: str, device: torch.device) -> Finding:
    """Try `attention` (as model.attention) with heads of both recipe backbones in bf16; all ranks take part.

    Costs less than a second on a CPU, megatron-core's import aside.
    """
    own = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    began = time.perf_counter()
    problem, backends = None, dict[str, str]()
    try:
        if device.type == "cpu":
            enable_host()
        for name in _BACKBONES:
            backends[name] = prove_backend(_few_heads(name), attention, "bf16", device, own).backend
    except ConfigError as error:
        problem = str(error)
    told: list[tuple[str, str | None, float]] = [("", None, 0.0)] * dist.get_world_size()
    dist.all_gather_object(told, (socket.gethostname(), problem, time.perf_counter() - began))
    if failed := [f"rank {rank} on {host}: {said}" for rank, (host, said, _) in enumerate(told) if said is not None]:
        return Finding("isolation", "fail", f"{failed[0]} ({len(failed)} ranks in all)")
    chosen = ", ".join(f"{name} by {backend}" for name, backend in backends.items())
    slowest = max(seconds for _, _, seconds in told)
    return Finding("isolation", "pass", f"documents of a row are kept apart on all ranks in {slowest:.1f} s: {chosen}")


def _few_heads(name: str) -> Architecture:
    preset = get_preset(name)
    return dataclasses.replace(
        preset,
        num_layers=1,
        hidden_size=_HEADS * preset.head_dim,
        num_attention_heads=_HEADS,
        num_query_groups=_HEADS,
    )
