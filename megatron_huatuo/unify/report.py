"""What unification kept and refused, by source and reason, with examples."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import Document
from megatron_huatuo.unify.backend import Pair, Refusal

_EXAMPLES_A_REASON = 3
_MAX_EXAMPLE_CHARACTERS = 300


class UnificationReport:
    """Counts of one run, filled as it goes."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.rejected: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def add(self, document: Document, outcome: Pair | Refusal) -> None:
        """Count one document's outcome; the first refusals of each reason become examples."""
        if isinstance(outcome, Pair):
            self.kept[document.source] += 1
            return
        reason = outcome.reason.split(":")[0]
        self.rejected[document.source][reason] += 1
        if len(self.examples[reason]) < _EXAMPLES_A_REASON:
            self.examples[reason].append(
                {
                    "id": document.id,
                    "reason": outcome.reason,
                    "question": _cut(outcome.question),
                    "answer": _cut(outcome.answer),
                }
            )

    def rejection(self, document: Document, refusal: Refusal) -> dict[str, Any]:
        """The line of `rejected.jsonl`: where the passage stood, and the last try."""
        origin = (document.metadata or {}).get("origin") or {}
        return {
            "id": document.id,
            "reason": refusal.reason,
            "file": origin.get("file"),
            "line": origin.get("line"),
            "question": _cut(refusal.question),
            "answer": _cut(refusal.answer),
        }

    def to_record(self, bad_lines: BadLines) -> dict[str, Any]:
        """The content of `report.json`."""
        reasons: Counter[str] = sum(self.rejected.values(), Counter())
        pairs, rejected = sum(self.kept.values()), sum(reasons.values())
        return {
            "documents": pairs + rejected,
            "pairs": pairs,
            "rejected": rejected,
            "rejected_by_reason": dict(sorted(reasons.items())),
            "by_source": {
                source: {"pairs": self.kept[source], "rejected": dict(sorted(self.rejected[source].items()))}
                for source in sorted({*self.kept, *self.rejected})
            },
            "examples": {reason: self.examples[reason] for reason in sorted(self.examples)},
            "bad_lines": bad_lines.count_by_reason(),
            "tolerated": dict(sorted(bad_lines.tolerated.items())),
        }


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _MAX_EXAMPLE_CHARACTERS:
        return text
    return text[:_MAX_EXAMPLE_CHARACTERS] + "…"
