"""The process groups of a run: torch.distributed and megatron-core's, started and ended together."""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_huatuo.model.parallel import ParallelConfig


def initialize_process_groups(parallel: ParallelConfig, device: torch.device, timeout_minutes: float = 10.0) -> None:
    """Start torch.distributed (gloo on the CPU, NCCL on GPUs) and megatron-core's groups.

    Ranks come from the launcher's environment (torchrun); without one a single process is its own world.
    timeout_minutes: after which a collective that waits for a lost rank fails.
    """
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if not dist.is_initialized():
        if "RANK" in os.environ:
            dist.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=timeout)
        else:
            dist.init_process_group(
                "gloo" if device.type == "cpu" else "nccl",
                timeout=timeout,
                store=dist.HashStore(),
                rank=0,
                world_size=1,
            )
    parallel.data_parallel_size(dist.get_world_size())
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        distributed_timeout_minutes=timeout_minutes,
    )


def destroy_process_groups() -> None:
    """Undo `initialize_process_groups`."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
