"""A whole unification: its shards, its settings, and how one task opens its input and its backend."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.llm.budget import spent_usd
from megatron_huatuo.llm.request_log import peek, task_log
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.manifest import fingerprint_work
from megatron_huatuo.unify.gates import QualitySettings
from megatron_huatuo.unify.input_documents import Shard, Task, read_documents
from megatron_huatuo.unify.input_pairs import read_pairs
from megatron_huatuo.unify.writers.writer import Backend
from megatron_huatuo.unify.writers.writer_replay import invite
from megatron_huatuo.unify.writers.writer_settings import ModelOptions
from megatron_huatuo.unify.writers.writer_template import TEMPLATES, TemplateBackend


@dataclass(frozen=True)
class Job:
    """All that a task needs to know. Holds no secret: it travels to the machines where tasks run.

    root: folder of unfinished work; requests: folder of the request logs; model: None for the template backend;
    language: of its pairs, by default each passage's own.
    """

    shards: tuple[Shard, ...]
    root: Path
    requests: Path
    quality: QualitySettings
    model: ModelOptions | None
    language: str | None
    max_concurrency: int
    pairs: bool
    gate_pairs: bool
    max_bad_lines: int

    @cached_property
    def work(self) -> Path:
        """Folder of this job's shards, for these files, settings and code alone."""
        decisive = [self.shards, self.describe_backend(), to_plain(self.quality), self.pairs, self.gate_pairs]
        return self.root / fingerprint_work(dict.fromkeys(shard.file for shard in self.shards if shard.file), decisive)

    @property
    def budget_usd(self) -> float | None:
        """What may be spent; a shard that this stopped is not tried again with the same."""
        return None if self.model is None else self.model.budget_usd

    def shard_path(self, rank: int) -> Path:
        """Directory of a finished shard."""
        return self.work / "shards" / f"{rank:05d}"

    def read(self, rank: int, bad_lines: BadLines) -> Iterator[Task]:
        """The work of one shard, in order."""
        shard = self.shards[rank]
        if self.model is not None and self.model.replay:
            return invite(self.model.replay, self.language, self.model.seed, shard.skipped_lines, shard.lines)
        return read_pairs(shard.file, bad_lines) if self.pairs else read_documents(shard, bad_lines)

    def describe_backend(self) -> dict[str, Any]:
        """What decides the output besides the input and the gates."""
        return {**TEMPLATES, "language": self.language} if self.model is None else self.model.describe()

    @contextlib.asynccontextmanager
    async def open_backend(self, rank: int) -> AsyncIterator[Backend]:
        """The backend of one task, inside the event loop that uses it."""
        if self.model is None:
            yield TemplateBackend(self.language)
            return
        # aiohttp takes a fifth of a second to import, and only this backend needs it.
        from megatron_huatuo.unify.writers.writer_model import open_model

        async with open_model(self.model, self.requests, rank) as backend:
            yield backend


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
        return sum(row.replies for row in totals) + sum(failures.values()), spent_usd(self.options.prices, totals)
