"""What a run costs besides memory: checkpoints and their time, days, GPU-hours, energy, money.

Invariant: each assumption is a named constant of this file and is said where its figure is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.flops import count_parameters
from megatron_huatuo.plan.gpus import Gpu
from megatron_huatuo.train.train_config import TrainConfig

# Shares of a board's limit that training draws, and what its part of the node (processors, adapters, fans) adds.
POWER_SHARE = 0.9
HOST_W_PER_GPU = 250.0
# Power of the building over that of the machines.
POWER_USAGE_EFFECTIVENESS = 1.3
# From a GPU to pinned host memory, every GPU over its own PCIe lanes.
COPY_BYTES_PER_S = 20e9


@dataclass(frozen=True)
class CheckpointCost:
    """One checkpoint."""

    size_bytes: float
    """Weights, float32 copies and two moments."""
    stall_s: float
    """Training stands still while the GPUs' share is copied to host memory; the whole write when saves are not in the
    background."""
    write_s: float
    """Until it is on the shared file system."""
    interval_s: float | None
    """Between saves; None for one at the end."""

    @property
    def share_of_time(self) -> float:
        """Of the run that stalls take."""
        return 0.0 if self.interval_s is None else self.stall_s / (self.interval_s + self.stall_s)


def checkpoint_cost(
    config: TrainConfig, architecture: Architecture, *, gpus: int, step_time_s: float, storage_bytes_per_s: float
) -> CheckpointCost:
    """Cost of a save on GPUs, of which every rank writes a part."""
    weight_bytes = 2 if config.training.precision == "bf16" else 0  # in float32 the optimizer's copy is the weight
    size = (12.0 + weight_bytes) * count_parameters(architecture)
    write_s = size / storage_bytes_per_s
    in_background = config.checkpoint.asynchronous is not False
    interval = config.checkpoint.save_interval
    return CheckpointCost(
        size_bytes=size,
        stall_s=size / gpus / COPY_BYTES_PER_S if in_background else write_s,
        write_s=write_s,
        interval_s=None if interval is None else interval * step_time_s,
    )


@dataclass(frozen=True)
class RunCost:
    """A whole run, stalls of saves included; failures and queues are not."""

    seconds: float
    gpus: int
    energy_kwh: float
    usd: float | None

    @property
    def days(self) -> float:
        """Wall time."""
        return self.seconds / 86400

    @property
    def gpu_hours(self) -> float:
        """Wall time of all GPUs."""
        return self.seconds / 3600 * self.gpus


def run_cost(
    gpu: Gpu, gpus: int, *, steps: int, step_time_s: float, checkpoint: CheckpointCost, usd_per_gpu_hour: float | None
) -> RunCost:
    """Cost of `steps` steps."""
    seconds = steps * step_time_s / (1 - checkpoint.share_of_time)
    hours = seconds / 3600 * gpus
    watts = gpu.power_w * POWER_SHARE + HOST_W_PER_GPU
    return RunCost(
        seconds=seconds,
        gpus=gpus,
        energy_kwh=hours * watts * POWER_USAGE_EFFECTIVENESS / 1000,
        usd=None if usd_per_gpu_hour is None else hours * usd_per_gpu_hour,
    )
