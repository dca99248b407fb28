"""One pass over the documents: pairs and refusals to disk, in order, with live figures.

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
from megatron_huatuo.unify.rewrite import rewrite

# Documents between input and output for each request in flight: one slow document must not starve the others.
_WINDOW_A_REQUEST = 4


class Run:
    """Turns documents into conversations.jsonl and rejected.jsonl of one directory."""

    def __init__(self, backend: Backend, gates: Gates, max_concurrency: int) -> None:
        self.backend, self.gates, self.max_concurrency = backend, gates, max_concurrency
        self.report = UnificationReport()
        self.stopped: str | None = None

    async def outcome(self, document: Document) -> Pair | Refusal | None:
        """The pair or refusal of a document; None once the budget is reached."""
        if self.stopped:
            return None
        try:
            return await rewrite(self.backend, document, self.gates)
        except BudgetReached as reached:
            if not self.stopped:
                self.stopped = str(reached)
                get_logger(__name__).warning("%s", reached)
            return None

    async def write(self, documents: Iterable[Document], directory: Path, total: int | None) -> None:
        """Write both files; near-duplicate pairs are still among the conversations."""
        window = _WINDOW_A_REQUEST * self.max_concurrency
        with (
            open(directory / "conversations.jsonl", "wb") as kept,
            open(directory / "rejected.jsonl", "wb") as rejected,
            progress(total=total, description="unify", unit="doc") as bar,
        ):
            async for document, outcome in ordered_map(self.outcome, documents, window):
                bar.update()
                bar.set_postfix(self.backend.spending(), refresh=False)
                if outcome is None:
                    self.report.not_reached += 1
                elif isinstance(outcome, Pair):
                    kept.write(dump_line(to_conversation(document, outcome).to_record()))
                    language = self.backend.language(document)
                    scores = measure_support(outcome.answer, outcome.question, document, language)
                    self.report.add_pair(document, outcome, scores)
                else:
                    rejected.write(dump_line(self.report.add_refusal(document, outcome)))

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
        question, answer = (turn.value for turn in conversation.turns)
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


def to_conversation(document: Document, pair: Pair) -> Conversation:
    """The record of a pair; its provenance leads to the passage, the file and the offset."""
    origin = (document.metadata or {}).get("origin") or {}
    provenance = {"passage": document.id, **origin, **pair.provenance}
    return Conversation(
        document.id, (Turn("human", pair.question), Turn("gpt", pair.answer)), document.source, provenance
    )
