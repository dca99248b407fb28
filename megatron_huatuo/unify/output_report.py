"""What unification kept and refused, by source and reason, with examples and distributions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.llm.budget import Price
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import Conversation
from megatron_huatuo.unify.input_documents import Task
from megatron_huatuo.unify.writers.writer import Refusal, Spent

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
        self.styles: dict[str, Counter[str]] = defaultdict(Counter)
        self.style_reasons: dict[str, Counter[str]] = defaultdict(Counter)
        self.style_tokens: dict[str, Counter[str]] = defaultdict(Counter)

    def add_pair(self, conversation: Conversation, scores: tuple[float, float] | None) -> None:
        """Count a conversation; scores: its faithfulness and coverage, where defined."""
        self.kept[conversation.source or "unknown"] += 1
        self.answer_characters += _answered(conversation)
        for histogram, score in zip((self.faithfulness, self.coverage), scores or (), strict=False):
            histogram[min(int(score * _BINS), _BINS - 1)] += 1

    def add_refusal(self, task: Task, refusal: Refusal) -> dict[str, Any]:
        """Count a refusal; returns the line of `rejected.jsonl`."""
        return self._refuse(task.id, task.source, refusal, task.origin)

    def move_to_refused(self, conversation: Conversation, refusal: Refusal) -> dict[str, Any]:
        """Count a pair that was kept at first as refused; returns the line of `rejected.jsonl`."""
        source = conversation.source or "unknown"
        self.kept[source] -= 1
        self.answer_characters -= _answered(conversation)
        if style := (conversation.provenance or {}).get("style"):
            self.styles[style].update({"conversations": -1, "answers": -(len(conversation.turns) // 2)})
            self.style_reasons[style][_name(refusal)] += 1
        return self._refuse(conversation.id, source, refusal, conversation.provenance or {})

    def _refuse(self, name: str, source: str, refusal: Refusal, origin: Mapping[str, Any]) -> dict[str, Any]:
        reason = _name(refusal)
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

    def add_style(self, style: str, result: Conversation | Refusal | None, spent: Spent) -> None:
        """Count what became of a passage under its style, and the tokens that it took."""
        counts = self.styles[style]
        counts["passages"] += result is not None
        if isinstance(result, Conversation):
            counts.update({"conversations": 1, "answers": len(result.turns) // 2})
        elif result is not None:
            self.style_reasons[style][_name(result)] += 1
        for (model, kind), tokens in spent.items():
            self.style_tokens[style][f"{kind} {model}"] += tokens

    def by_style(self, prices: Mapping[str, Price] | None) -> dict[str, dict[str, Any]]:
        """Yield, tokens and money of each style. Tokens of equal requests, which are paid once, count for each passage."""
        return {style: self._one_style(style, prices) for style in sorted(self.styles)}

    def _one_style(self, style: str, prices: Mapping[str, Price] | None) -> dict[str, Any]:
        counts, tokens = self.styles[style], self.style_tokens[style]
        models = sorted({name.partition(" ")[2] for name in tokens})
        cost_usd = None
        if prices is not None:
            cost_usd = sum(prices[m].cost_usd(tokens[f"prompt {m}"], tokens[f"completion {m}"]) for m in models)
        kept = counts["conversations"]
        return {
            "passages": counts["passages"],
            "conversations": kept,
            "answers": counts["answers"],
            "yield": round(kept / counts["passages"], 4) if counts["passages"] else None,
            "rejected": dict(sorted(self.style_reasons[style].items())),
            "prompt_tokens": sum(tokens[f"prompt {m}"] for m in models),
            "completion_tokens": sum(tokens[f"completion {m}"] for m in models),
            "cost_usd": cost_usd,
            "usd_per_kept_pair": cost_usd / counts["answers"] if cost_usd is not None and counts["answers"] else None,
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
        for name in ("styles", "style_reasons", "style_tokens"):
            for style, counts in state[name].items():
                getattr(self, name)[style].update(counts)
        self.answer_characters += state["answer_characters"]
        self.not_reached += state["not_reached"]

    def to_record(self, bad_lines: BadLines, prices: Mapping[str, Price] | None = None) -> dict[str, Any]:
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
            "by_style": self.by_style(prices),
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


def _name(refusal: Refusal) -> str:
    """A reason without its details."""
    return refusal.reason.split(":")[0]


def _answered(conversation: Conversation) -> int:
    """Characters of all answers."""
    return sum(len(turn.value) for turn in conversation.turns[1::2])
