"""The work of one task, done: conversations and refusals to disk, in order, with live figures.

Invariants: memory is flat; what is written does not depend on concurrency or on which replies came first; a shard
directory is published whole or not at all, so a task that was killed is done again, from its log.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datatrove.pipeline.base import PipelineStep

from megatron_huatuo.execution.processes import be_quiet
from megatron_huatuo.llm.budget import BudgetReached
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.atomic import atomic_directory, open_output
from megatron_huatuo.storage.jsonl import BadLines, dump_line
from megatron_huatuo.storage.manifest import write_json
from megatron_huatuo.storage.records import Conversation, Document, Turn
from megatron_huatuo.text.minhash import signature
from megatron_huatuo.text.near_duplicates import SIGNATURES, write_band_keys
from megatron_huatuo.unify.gates import Gates, measure_support, pair_language
from megatron_huatuo.unify.input_documents import Invitation, Query, Task
from megatron_huatuo.unify.output_report import UnificationReport
from megatron_huatuo.unify.run_job import Job
from megatron_huatuo.unify.writers.writer import Backend, Refusal, Spent, WrittenPair, reply_to, rewrite, write_replay

Item = TypeVar("Item")
Result = TypeVar("Result")

# Documents between input and output for each request in flight: one slow document must not starve the others.
_WINDOW_A_REQUEST = 4


class Outcome(NamedTuple):
    """What became of a task: a conversation, a refusal, or nothing; its style, if one was drawn; and the tokens it took."""

    result: Conversation | Refusal | None
    style: str | None
    spent: Spent


class Unifier:
    """Turns tasks into conversations.jsonl, their signatures and rejected.jsonl of one directory."""

    def __init__(self, backend: Backend, gates: Gates, max_concurrency: int, gate_pairs: bool = False) -> None:
        """gate_pairs: conversations that are taken over must pass the gates too."""
        self.backend, self.gates, self.max_concurrency = backend, gates, max_concurrency
        self.gate_pairs = gate_pairs
        self.report = UnificationReport()
        self.stopped: str | None = None

    async def outcome(self, task: Task) -> Outcome:
        """What becomes of a task; without a result once the budget is reached."""
        spent: Spent = Counter()
        work, style, result = task.work, None, None
        try:
            if self.stopped:
                pass
            elif isinstance(work, Conversation):
                return Outcome(await self._take_over(task, work, spent), None, spent)
            elif isinstance(work, Query):
                result = await reply_to(self.backend, work, self.gates, spent)
            elif isinstance(work, Invitation):
                result = await write_replay(self.backend, work, self.gates, spent)
            else:
                style = self.backend.style(work)
                result = await rewrite(self.backend, work, self.gates, style, spent)
        except BudgetReached as reached:
            if not self.stopped:
                self.stopped = str(reached)
                get_logger(__name__).warning("%s", reached)
            return Outcome(None, None, spent)
        conversation = to_conversation(task, result) if isinstance(result, WrittenPair) else result
        return Outcome(conversation, style.style if style else None, spent)

    async def _take_over(self, task: Task, conversation: Conversation, spent: Spent) -> Conversation | Refusal:
        values = [turn.value for turn in conversation.turns]
        if not any(turn.trained for turn in conversation.turns[1::2]):
            return Refusal("no answer to train on: all have weight 0", values[0], values[-1])
        if self.gate_pairs:
            for question, answer in zip(values[::2], values[1::2], strict=True):
                language = pair_language(question, answer)
                reason = self.gates.refuse_reply(answer, question, language)
                reason = reason or await self.backend.check(None, question, answer, language, spent)
                if reason:
                    return Refusal(reason, values[0], values[-1])
        provenance = dict(task.origin)
        if conversation.provenance is not None:
            provenance["provenance"] = dict(conversation.provenance)
        return replace(conversation, id=task.id, source=task.source, provenance=provenance)

    async def write(self, tasks: Iterable[Task], directory: Path, bar: Any) -> None:
        """Write all files; near-duplicate pairs are still among the conversations. bar: a progress bar to move."""
        window = _WINDOW_A_REQUEST * self.max_concurrency
        with (
            open_output(directory / "conversations.jsonl") as kept,
            open_output(directory / SIGNATURES) as signatures,
            open_output(directory / "rejected.jsonl") as rejected,
        ):
            async for task, outcome in in_order(self.outcome, tasks, window):
                bar.update()
                bar.set_postfix(shown_usage(self.backend.usage()), refresh=False)
                result, style, spent = outcome
                if result is None:
                    self.report.not_reached += 1
                elif isinstance(result, Conversation):
                    kept.write(dump_line(result.to_record()))
                    signatures.write(signature("\n".join(turn.value for turn in result.turns)).tobytes())
                    self.report.add_pair(result, self._support(task, result))
                else:
                    rejected.write(dump_line(self.report.add_refusal(task, result)))
                if style is not None:
                    self.report.add_style(style, result, spent)
        write_band_keys(directory)

    def _support(self, task: Task, conversation: Conversation) -> tuple[float, float] | None:
        """Faithfulness and coverage, where there is a passage to compare with."""
        if not isinstance(task.work, Document):
            return None
        values = [turn.value for turn in conversation.turns]
        language = self.backend.language(task.work.language)
        return measure_support("\n".join(values[1::2]), "\n".join(values[::2]), task.work, language)


def shown_usage(usage: dict[str, float]) -> dict[str, str]:
    """What a progress bar shows of a backend's usage."""
    if not usage:
        return {}
    return {
        "requests": f"{usage['requests']:.0f}", "retries": f"{usage['retries']:.0f}", "usd": f"{usage['cost_usd']:.2f}",
    }  # fmt: skip


def to_conversation(task: Task, written: WrittenPair) -> Conversation:
    """The record of a conversation; its provenance leads to the passage, the file and the offset."""
    passage = {"passage": task.id} if isinstance(task.work, Document | Query) else {}
    turns = [
        Turn(speaker, text) for pair in written.pairs for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]
    return Conversation(task.id, tuple(turns), task.source, {**passage, **task.origin, **written.provenance})


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

    async def _write(self, rank: int, tasks: Iterable[Task], directory: Path) -> tuple[Unifier, dict[str, float]]:
        job, number = self.job, len(self.job.shards)
        description = f"unify {rank + 1}/{number}" if number > 1 else "unify"
        total = job.shards[rank].lines
        async with job.open_backend(rank) as backend:
            run = Unifier(backend, Gates(job.quality), job.max_concurrency, job.gate_pairs)
            with progress(total=total, description=description, unit="doc", disable=not self.show_progress) as bar:
                await run.write(tasks, directory, bar)
            return run, backend.usage()


async def in_order(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], max_in_flight: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Yield (item, await function(item)) in the order of `items`.

    At most `max_in_flight` items are between input and output, so memory is flat and order needs no sorting. The first exception ends the run: tasks in flight are cancelled and awaited before it is raised.
    """
    waiting: deque[tuple[Item, asyncio.Task[Result]]] = deque()

    async def run(item: Item) -> Result:
        return await function(item)

    try:
        for item in items:
            waiting.append((item, asyncio.create_task(run(item))))
            if len(waiting) >= max_in_flight:
                first, task = waiting.popleft()
                yield first, await task
        while waiting:
            first, task = waiting.popleft()
            yield first, await task
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
