"""What unification kept and refused, by source and reason, with examples and distributions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import Conversation
from megatron_huatuo.unify.input_documents import Task
from megatron_huatuo.unify.writer import Refusal

_EXAMPLES_A_REASON = 3
_MAX_EXAMPLE_CHARACTERS = 300
_BINS = 20


class UnificationReport:
    """Counts of one task, or of all tasks merged."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.rejected: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.faithfulness, self.coverage = [0] * _BINS, [0] * _BINS
        self.answer_characters = 0
        self.not_reached = 0

    def add_pair(self, conversation: Conversation, scores: tuple[float, float] | None) -> None:
        """Count a conversation; scores: its faithfulness and coverage, where defined."""
        self.kept[conversation.source or "unknown"] += 1
        self.answer_characters += len(conversation.turns[-1].value)
        for histogram, score in zip((self.faithfulness, self.coverage), scores or (), strict=False):
            histogram[min(int(score * _BINS), _BINS - 1)] += 1

    def add_refusal(self, task: Task, refusal: Refusal) -> dict[str, Any]:
        """Count a refusal; returns the line of `rejected.jsonl`."""
        return self._refuse(task.id, task.source, refusal, task.origin)

    def move_to_refused(self, conversation: Conversation, refusal: Refusal) -> dict[str, Any]:
        """Count a pair that was kept at first as refused; returns the line of `rejected.jsonl`."""
        source = conversation.source or "unknown"
        self.kept[source] -= 1
        self.answer_characters -= len(conversation.turns[-1].value)
        return self._refuse(conversation.id, source, refusal, conversation.provenance or {})

    def _refuse(self, name: str, source: str, refusal: Refusal, origin: Mapping[str, Any]) -> dict[str, Any]:
        reason = refusal.reason.split(":")[0]
        self.rejected[source][reason] += 1
        texts = {"question": _cut(refusal.question), "answer": _cut(refusal.answer)}
        if len(self.examples[reason]) < _EXAMPLES_A_REASON:
            self.examples[reason].append({"id": name, "reason": refusal.reason, **texts})
        return {
            "id": name,
            "reason": refusal.reason,
            "file": origin.get("file"),
            "line": origin.get("line"),
            **texts,
        }

    def to_state(self) -> dict[str, Any]:
        """All counts as JSON values, for `merge`."""
        return {name: to_plain(value) for name, value in vars(self).items()}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another task counted, whose documents come after those counted so far."""
        self.kept.update(state["kept"])
        for source, reasons in state["rejected"].items():
            self.rejected[source].update(reasons)
        for reason, examples in state["examples"].items():
            self.examples[reason] = (self.examples[reason] + examples)[:_EXAMPLES_A_REASON]
        for name in ("faithfulness", "coverage"):
            setattr(self, name, [ours + more for ours, more in zip(getattr(self, name), state[name], strict=True)])
        self.answer_characters += state["answer_characters"]
        self.not_reached += state["not_reached"]

    def to_record(self, bad_lines: BadLines) -> dict[str, Any]:
        """The content of `report.json`."""
        reasons: Counter[str] = sum(self.rejected.values(), Counter())
        pairs, rejected = sum(self.kept.values()), sum(reasons.values())
        return {
            "documents": pairs + rejected + self.not_reached,
            "pairs": pairs,
            "rejected": rejected,
            "not_reached": self.not_reached,
            "rejected_by_reason": dict(sorted(reasons.items())),
            "by_source": {
                source: {"pairs": self.kept[source], "rejected": dict(sorted(self.rejected[source].items()))}
                for source in sorted({*self.kept, *self.rejected})
            },
            "mean_answer_characters": round(self.answer_characters / pairs, 1) if pairs else None,
            "distributions": {
                "bin_width": 1 / _BINS,
                "faithfulness": self.faithfulness,
                "coverage": self.coverage,
            },
            "examples": {reason: self.examples[reason] for reason in sorted(self.examples)},
            "bad_lines": bad_lines.count_by_reason(),
            "tolerated": dict(sorted(bad_lines.tolerated.items())),
        }


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _MAX_EXAMPLE_CHARACTERS:
        return text
    return text[:_MAX_EXAMPLE_CHARACTERS] + "…"
