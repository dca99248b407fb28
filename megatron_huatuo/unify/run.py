"""One pass over the tasks: conversations and refusals to disk, in order, with live figures.

Invariant: memory is flat; what is written does not depend on concurrency or on which replies came first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.jsonl import dump_line, read_jsonl
from megatron_huatuo.storage.records import Conversation, Document, Turn, parse_conversations
from megatron_huatuo.text.minhash import NUM_PERMUTATIONS, first_of_group, signature
from megatron_huatuo.unify.backend import Backend, Pair, Refusal
from megatron_huatuo.unify.gates import Gates, measure_support
from megatron_huatuo.unify.ordered import ordered_map
from megatron_huatuo.unify.prices import BudgetReached
from megatron_huatuo.unify.report import UnificationReport
from megatron_huatuo.unify.rewrite import reply_to, rewrite
from megatron_huatuo.unify.task import Query, Task

# Tasks between input and output for each request in flight: one slow task must not starve the others.
_WINDOW_A_REQUEST = 4


class Run:
    """Turns tasks into conversations.jsonl and rejected.jsonl of one directory."""

    def __init__(self, backend: Backend, gates: Gates, max_concurrency: int, gate_pairs: bool = False) -> None:
        """gate_pairs: conversations that are taken over must pass the gates too."""
        self.backend, self.gates, self.max_concurrency = backend, gates, max_concurrency
        self.gate_pairs = gate_pairs
        self.report = UnificationReport()
        self.stopped: str | None = None

    async def outcome(self, task: Task) -> Conversation | Refusal | None:
        """The conversation or refusal of a task; None once the budget is reached."""
        if isinstance(task.work, Conversation):
            return self._take_over(task, task.work)
        if self.stopped:
            return None
        try:
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

    def _take_over(self, task: Task, conversation: Conversation) -> Conversation | Refusal:
        if self.gate_pairs and (reason := self.gates.refuse_conversation(conversation)):
            return Refusal(reason, conversation.turns[0].value, conversation.turns[-1].value)
        return Conversation(task.id, conversation.turns, task.source, dict(task.origin))

    async def write(self, tasks: Iterable[Task], directory: Path, total: int | None) -> None:
        """Write both files; near-duplicate pairs are still among the conversations."""
        window = _WINDOW_A_REQUEST * self.max_concurrency
        with (
            open(directory / "conversations.jsonl", "wb") as kept,
            open(directory / "rejected.jsonl", "wb") as rejected,
            progress(total=total, description="unify", unit="doc") as bar,
        ):
            async for task, outcome in ordered_map(self.outcome, tasks, window):
                bar.update()
                bar.set_postfix(self.backend.spending(), refresh=False)
                if outcome is None:
                    self.report.not_reached += 1
                elif isinstance(outcome, Conversation):
                    kept.write(dump_line(outcome.to_record()))
                    self.report.add_pair(outcome, self._support(task, outcome))
                else:
                    rejected.write(dump_line(self.report.add_refusal(task, outcome)))

    def _support(self, task: Task, conversation: Conversation) -> tuple[float, float] | None:
        """Faithfulness and coverage, where there is a passage to compare with."""
        if not isinstance(task.work, Document):
            return None
        question, answer = (turn.value for turn in conversation.turns)
        return measure_support(answer, question, task.work, self.backend.language(task.work.language))

    def drop_near_duplicates(self, directory: Path, threshold: float) -> None:
        """Move pairs that nearly repeat an earlier pair from the conversations to the rejected."""
        path = directory / "conversations.jsonl"
        signatures = _sign_pairs(path, directory / "signatures.tmp")
        first = first_of_group(signatures, threshold)
        if (first == np.arange(len(first))).all():
            return
        ids = {int(number): "" for number in np.unique(first)}
        kept_path = directory / "conversations.tmp"
        with open(kept_path, "wb") as kept, open(directory / "rejected.jsonl", "ab") as rejected:
            for index, conversation in enumerate(_read_pairs(path)):
                if index in ids:
                    ids[index] = conversation.id
                if first[index] == index:
                    kept.write(dump_line(conversation.to_record()))
                else:
                    self._reject_duplicate(conversation, ids[int(first[index])], rejected)
        kept_path.replace(path)

    def _reject_duplicate(self, conversation: Conversation, first_id: str, rejected: IO[bytes]) -> None:
        question, answer = conversation.turns[0].value, conversation.turns[-1].value
        refusal = Refusal(f"near-duplicate pair: of {first_id}", question, answer)
        rejected.write(dump_line(self.report.move_to_refused(conversation, refusal)))


def _sign_pairs(path: Path, scratch: Path) -> Any:
    """Signatures of all pairs, uint32 [N, NUM_PERMUTATIONS], in a file that is mapped and already deleted."""
    with open(scratch, "wb") as handle:
        for conversation in _read_pairs(path):
            handle.write(signature("\n".join(turn.value for turn in conversation.turns)).tobytes())
    number = scratch.stat().st_size // (4 * NUM_PERMUTATIONS)
    shape = (number, NUM_PERMUTATIONS)
    signatures = np.memmap(scratch, np.uint32, "r", shape=shape) if number else np.empty(shape, np.uint32)
    scratch.unlink()
    return signatures


def _read_pairs(path: Path) -> Iterable[Conversation]:
    for line in read_jsonl(path):
        yield from parse_conversations(line.record, f"{path}:{line.number}")


def to_conversation(task: Task, pair: Pair) -> Conversation:
    """The record of a pair; its provenance leads to the passage, the file and the offset."""
    provenance = {"passage": task.id, **task.origin, **pair.provenance}
    return Conversation(task.id, (Turn("human", pair.question), Turn("gpt", pair.answer)), task.source, provenance)
