"""The process groups of a run: torch.distributed and megatron-core's, started and ended together."""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.parallel.parallel_config import ParallelConfig


def initialize_process_groups(parallel: ParallelConfig, device: torch.device, timeout_minutes: float = 10.0) -> None:
    """Start torch.distributed (gloo on the CPU, NCCL on GPUs) and megatron-core's groups.

    Ranks come from the launcher's environment (torchrun); without one a single process is its own world.
    timeout_minutes: after which a collective that waits for a lost rank fails.
    """
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if not dist.is_initialized():
        backend = "gloo" if device.type == "cpu" else "nccl"
        store, rank, world_size = _rendezvous(timeout)
        _refuse_other_devices(store, rank, device)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)
    parallel.data_parallel_size(dist.get_world_size())
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        distributed_timeout_minutes=timeout_minutes,
    )


def _rendezvous(timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """(store, rank, world size). torchrun 2.13 gives a restarted group the store of the killed one, where ranks would
    find the addresses of the dead: each attempt gets names of its own. The count of restarts is one node's own.

    Raises: ConfigError for restarts on several nodes without a fresh store.
    """
    if "RANK" not in os.environ:
        return dist.HashStore(), 0, 1
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    nodes, restarts = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if shares_store and nodes != "1" and restarts != "0":
        raise ConfigError(
            f"wrong torchrun --max-restarts: got {restarts} on {nodes} nodes, whose restarted ranks would find the addresses "
            "of the dead. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or use --max-restarts 0."
        )
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    if shares_store:
        store = dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    return store, rank, world_size


def _refuse_other_devices(store: dist.Store, rank: int, device: torch.device) -> None:
    """Ranks of one job on GPUs and on CPUs would wait for each other until the time limit, without a word.

    Raises: ConfigError on the ranks that differ from the first one that came.
    """
    first = store.compare_set("device", "", device.type).decode()
    if first != device.type:
        raise ConfigError(
            f"ranks have different devices: rank {rank} has {device.type!r}, another one {first!r}. torch sees no GPU on one "
            "of the nodes: check its driver and Python environment, and set runtime.device to cuda or cpu."
        )


def destroy_process_groups() -> None:
    """Undo `initialize_process_groups`."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
