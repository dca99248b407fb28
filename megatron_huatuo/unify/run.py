"""One pass over the work of one task: conversations and refusals to disk, in order, with live figures.

Invariant: memory is flat; what is written does not depend on concurrency or on which replies came first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.jsonl import dump_line
from megatron_huatuo.storage.records import Conversation, Document, Turn
from megatron_huatuo.text.minhash import signature
from megatron_huatuo.unify.backend import Backend, Pair, Refusal
from megatron_huatuo.unify.budget import BudgetReached
from megatron_huatuo.unify.gates import Gates, measure_support, pair_language
from megatron_huatuo.unify.ordered import ordered_map
from megatron_huatuo.unify.report import UnificationReport
from megatron_huatuo.unify.rewrite import reply_to, rewrite
from megatron_huatuo.unify.task import Query, Task

# Documents between input and output for each request in flight: one slow document must not starve the others.
_WINDOW_A_REQUEST = 4


class Run:
    """Turns tasks into conversations.jsonl, signatures.bin and rejected.jsonl of one directory."""

    def __init__(self, backend: Backend, gates: Gates, max_concurrency: int, gate_pairs: bool = False) -> None:
        """gate_pairs: conversations that are taken over must pass the gates too."""
        self.backend, self.gates, self.max_concurrency = backend, gates, max_concurrency
        self.gate_pairs = gate_pairs
        self.report = UnificationReport()
        self.stopped: str | None = None

    async def outcome(self, task: Task) -> Conversation | Refusal | None:
        """The conversation or refusal of a task; None once the budget is reached."""
        if self.stopped:
            return None
        try:
            if isinstance(task.work, Conversation):
                return await self._take_over(task, task.work)
            if isinstance(task.work, Query):
                result = await reply_to(self.backend, task.work, self.gates)
            else:
                result = await rewrite(self.backend, task.work, self.gates)
        except BudgetReached as reached:
            if not self.stopped:
                self.stopped = str(reached)
                get_logger(__name__).warning("%s", reached)
            return None
        return result if isinstance(result, Refusal) else to_conversation(task, result)

    async def _take_over(self, task: Task, conversation: Conversation) -> Conversation | Refusal:
        if self.gate_pairs:
            values = [turn.value for turn in conversation.turns]
            for question, answer in zip(values[::2], values[1::2], strict=True):
                language = pair_language(question, answer)
                reason = self.gates.refuse_reply(answer, question, language)
                reason = reason or await self.backend.check(None, question, answer, language)
                if reason:
                    return Refusal(reason, values[0], values[-1])
        return Conversation(task.id, conversation.turns, task.source, dict(task.origin))

    async def write(self, tasks: Iterable[Task], directory: Path, bar: Any) -> None:
        """Write all files; near-duplicate pairs are still among the conversations. bar: a progress bar to move."""
        window = _WINDOW_A_REQUEST * self.max_concurrency
        with (
            open(directory / "conversations.jsonl", "wb") as kept,
            open(directory / "signatures.bin", "wb") as signatures,
            open(directory / "rejected.jsonl", "wb") as rejected,
        ):
            async for task, outcome in ordered_map(self.outcome, tasks, window):
                bar.update()
                bar.set_postfix(shown_usage(self.backend.usage()), refresh=False)
                if outcome is None:
                    self.report.not_reached += 1
                elif isinstance(outcome, Conversation):
                    kept.write(dump_line(outcome.to_record()))
                    signatures.write(signature("\n".join(turn.value for turn in outcome.turns)).tobytes())
                    self.report.add_pair(outcome, self._support(task, outcome))
                else:
                    rejected.write(dump_line(self.report.add_refusal(task, outcome)))

    def _support(self, task: Task, conversation: Conversation) -> tuple[float, float] | None:
        """Faithfulness and coverage, where there is a passage to compare with."""
        if not isinstance(task.work, Document):
            return None
        question, answer = (turn.value for turn in conversation.turns)
        return measure_support(answer, question, task.work, self.backend.language(task.work.language))


def shown_usage(usage: dict[str, float]) -> dict[str, str]:
    """What a progress bar shows of a backend's usage."""
    if not usage:
        return {}
    return {
        "requests": f"{usage['requests']:.0f}", "retries": f"{usage['retries']:.0f}", "usd": f"{usage['cost_usd']:.2f}",
    }  # fmt: skip


def to_conversation(task: Task, pair: Pair) -> Conversation:
    """The record of a pair; its provenance leads to the passage, the file and the offset."""
    provenance = {"passage": task.id, **task.origin, **pair.provenance}
    return Conversation(task.id, (Turn("human", pair.question), Turn("gpt", pair.answer)), task.source, provenance)
