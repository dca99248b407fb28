"""Scores of an exam: accuracy beside its chance level, in total and per question type and source.

Invariant: every question counts. A reply without an answer, or a question without a reply, is wrong and is counted
apart; nothing is ever scored as a default letter.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_UNNAMED = "-"


def score_replies(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `scores.json` from the records of `replies.jsonl`.

    The counts of `count_group` at the top, and again under `by_question_type`, `by_source` and
    `by_source_and_question_type`; `mean_over_sources` is the unweighted mean of the sources' accuracies.
    """
    by_source = _grouped(records, "source")
    return {
        **count_group(records),
        "mean_over_sources": sum(count_group(group)["accuracy"] for group in by_source.values()) / len(by_source),
        "by_question_type": {name: count_group(group) for name, group in _grouped(records, "question_type").items()},
        "by_source": {name: count_group(group) for name, group in by_source.items()},
        "by_source_and_question_type": {
            name: {kind: count_group(part) for kind, part in _grouped(group, "question_type").items()}
            for name, group in by_source.items()
        },
    }


def count_group(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of one group of replies.

    accuracy: correct / count. standard_error: sqrt(p (1 - p) / count), of the accuracy p.
    unparsed: replies that give no answer, wrong ones therefore. cut_off: replies that ended at the length limit.
    chance: mean over the questions of `chance_level`.
    """
    count = len(records)
    correct = sum(record["correct"] for record in records)
    accuracy = correct / count
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / count),
        "chance": sum(record["chance"] for record in records) / count,
        "count": count,
        "correct": correct,
        "unparsed": sum(record["parsed"] is None for record in records),
        "cut_off": sum(record["finish_reason"] == "length" for record in records),
    }


def _grouped(records: Iterable[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    groups: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record[key] or _UNNAMED].append(record)
    return dict(groups)


def format_scores(scores: Mapping[str, Any]) -> str:
    """The scores as a table for a terminal: one row a source and question type, then the total."""
    rows: list[tuple[str, ...]] = [
        ("source", "question type", "questions", "correct", "accuracy", "chance", "unparsed")
    ]
    for source, kinds in scores["by_source_and_question_type"].items():
        rows += [(source, kind, *_cells(counts)) for kind, counts in kinds.items()]
        if len(kinds) > 1 and len(scores["by_source"]) > 1:
            rows.append((source, "all", *_cells(scores["by_source"][source])))
    rows.append(("total", "all", *_cells(scores)))
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            _padded(cell, width, left=column < 2) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _cells(counts: Mapping[str, Any]) -> tuple[str, ...]:
    accuracy = f"{100 * counts['accuracy']:.1f}±{100 * counts['standard_error']:.1f} %"
    return (
        str(counts["count"]),
        str(counts["correct"]),
        accuracy,
        f"{100 * counts['chance']:.1f} %",
        str(counts["unparsed"]),
    )


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _padded(text: str, width: int, *, left: bool) -> str:
    blanks = " " * (width - _width(text))
    return text + blanks if left else blanks + text
