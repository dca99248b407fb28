"""Requests and money of tasks in several processes, for the one progress bar that is over them all."""

from __future__ import annotations

from megatron_huatuo.unify.job import Job
from megatron_huatuo.unify.ledger import spent_usd
from megatron_huatuo.unify.model import ModelOptions
from megatron_huatuo.unify.request_log import peek, task_log


class LiveFigures:
    """What the tasks of a job have done in this run, out of the request logs that they write on this machine."""

    def __init__(self, job: Job, options: ModelOptions) -> None:
        self.job, self.options = job, options
        self._finished: dict[int, tuple[int, float]] = {}

    def __call__(self) -> dict[str, str]:
        """The requests that came to an end, and what they cost."""
        figures = dict(self._finished)
        for rank in range(len(self.job.shards)):
            if rank not in figures:
                is_finished = self.job.shard_path(rank).exists()
                figures[rank] = self._read(rank)
                if is_finished:
                    self._finished[rank] = figures[rank]
        requests, usd = (sum(column) for column in zip(*figures.values(), strict=True))
        return {"requests": str(requests), "usd": f"{usd:.2f}"}

    def _read(self, rank: int) -> tuple[int, float]:
        totals, failures = peek(task_log(self.job.requests, rank))
        return sum(row.replies for row in totals) + sum(failures.values()), spent_usd(self.options, totals)
