"""Where tasks run: in processes here, as a SLURM array, or on Ray; each task is done once, whatever is killed.

datatrove keeps the record of finished tasks; the executors are `processes`, `slurm` and `ray`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_huatuo.config import at_least, one_of
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.atomic import naming_write_errors


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


def run_tasks(
    name: str,
    make_pipeline: Callable[[bool], list[Any]],
    tasks: int,
    logging_dir: Path,
    settings: ExecutorSettings,
    *,
    is_done: Callable[[int], bool],
    figures: Callable[[], dict[str, str]] | None = None,
) -> bool:
    """Run all tasks that are not done; returns whether all are done now (SLURM runs them later).

    name: of the stage, for progress bars and job names. make_pipeline: (show a progress bar of its own) -> steps.
    is_done: whether what a task makes is there; the record of a finished task alone is not believed.
    figures: what a bar over several local tasks shows besides their number; without secrets, it goes to the workers too.
    """
    # datatrove takes half a second to import.
    from megatron_huatuo.execution.processes import ProcessExecutor

    for rank in range(tasks):
        if not is_done(rank):
            (logging_dir / "completions" / f"{rank:05d}").unlink(missing_ok=True)
    common: dict[str, Any] = {"tasks": tasks, "logging_dir": str(logging_dir), "workers": settings.workers}
    if settings.executor == "local":
        executor: Any = ProcessExecutor(name, make_pipeline(settings.workers == 1 or tasks == 1), figures, **common)
    elif settings.executor == "slurm":
        from megatron_huatuo.execution.slurm import SlurmExecutor

        executor = SlurmExecutor(
            name,
            make_pipeline(False),
            **common,
            time=settings.slurm_time,
            partition=settings.slurm_partition,
            memory_gib=settings.memory_gib,
        )
    else:
        from megatron_huatuo.execution.ray import RayExecutor

        executor = RayExecutor(name, make_pipeline(False), **common, memory_gib=settings.memory_gib)
    with naming_write_errors(logging_dir):
        executor.run()
    return not executor.get_incomplete_ranks(range(tasks))
