"""One shard, done: what a task of any executor runs, and what it leaves for the merge.

Invariant: a shard directory is published whole or not at all, so a task that was killed is done again, from its log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from megatron_huatuo.execution.processes import be_quiet
from megatron_huatuo.log import progress
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.manifest import write_json
from megatron_huatuo.unify.gates import Gates
from megatron_huatuo.unify.job import Job
from megatron_huatuo.unify.run import Run
from megatron_huatuo.unify.task import Task


class UnifyShard(PipelineStep):
    """The only step of a task; the task's rank is the number of its shard."""

    type, name = "unification", "unify"

    def __init__(self, job: Job, show_progress: bool) -> None:
        super().__init__()
        self.job, self.show_progress = job, show_progress

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write the shard."""
        # datatrove logs errors together with the values of all variables, an API key among them.
        be_quiet()
        started_s = time.monotonic()
        bad_lines = BadLines(self.job.max_bad_lines)
        with atomic_directory(self.job.shard_path(rank), replace=True) as directory:
            run, usage = asyncio.run(self._write(rank, self.job.read(rank, bad_lines), directory))
            content = {
                "stopped": run.stopped,
                "budget_usd": self.job.budget_usd,
                "bad_lines": bad_lines.lines,
                "tolerated": bad_lines.tolerated,
                "report": run.report.to_state(),
                "usage": {**usage, "task_time_s": round(time.monotonic() - started_s, 3)},
            }
            write_json(directory / "shard.json", content)

    async def _write(self, rank: int, tasks: Iterable[Task], directory: Path) -> tuple[Run, dict[str, float]]:
        job, number = self.job, len(self.job.shards)
        description = f"unify {rank + 1}/{number}" if number > 1 else "unify"
        total = job.shards[rank].lines
        async with job.open_backend(rank) as backend:
            run = Run(backend, Gates(job.quality), job.max_concurrency, job.gate_pairs)
            with progress(total=total, description=description, unit="doc", disable=not self.show_progress) as bar:
                await run.write(tasks, directory, bar)
            return run, backend.usage()
