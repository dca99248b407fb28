"""Settings of execution: here, on a cluster, and how many tasks at once."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.config import at_least, one_of
from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class ExecutorSettings:
    """Where the tasks of a stage run."""

    executor: str = "local"
    workers: int = 1
    """Tasks at the same time"""
    slurm_partition: str = ""
    """SLURM partition"""
    slurm_time: str = "08:00:00"
    """SLURM time limit of one task"""
    memory_gib: int = 4
    """Memory of one task under SLURM and Ray, in GiB"""

    def __post_init__(self) -> None:
        one_of("executor", self.executor, ("local", "slurm", "ray"))
        at_least("workers", self.workers, 1)
        if self.executor == "slurm" and not self.slurm_partition:
            raise ConfigError("the slurm executor needs --slurm-partition.")
