"""Scores of an exam: accuracy with its interval beside its chance level, in total and per question type, source and exam.

Invariant: every question that was answered counts. A reply without an answer is wrong and counted apart; a question without
a reply is missing, never wrong; nothing is ever scored as a default letter.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megatron_huatuo.evaluate.significance import interval_of_mean_share, wilson_interval
from megatron_huatuo.exams.exam_formats import exam_format

_UNNAMED = "-"


def score_replies(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `scores.json` from the records of `replies.jsonl`.

    The counts of `count_group` at the top, and again under `by_question_type`, `by_source`,
    `by_source_and_question_type`, `by_subset` and `by_exam`. `mean_over_sources` is the plain mean of the sources'
    accuracies. Under `by_exam` stands `published_score` as well: the mean that the exam publishes, over its questions or
    its subsets.
    """
    by_source = grouped(records, "source")
    return {
        **count_group(records),
        "complete": all(record["correct"] is not None for record in records),
        **_mean_of_groups({str(n): group for n, group in enumerate(by_source.values())}, "mean_over_sources"),
        "by_question_type": {name: count_group(group) for name, group in grouped(records, "question_type").items()},
        "by_source": {name: count_group(group) for name, group in by_source.items()},
        "by_source_and_question_type": {
            name: {kind: count_group(part) for kind, part in grouped(group, "question_type").items()}
            for name, group in by_source.items()
        },
        "by_subset": {
            name: count_group(group) for name, group in grouped(records, "subset").items() if name != _UNNAMED
        },
        "by_exam": {name: _count_exam(name, group) for name, group in grouped(records, "exam").items()},
    }


def count_group(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of one group of replies.

    count: questions asked. missing: those without a reply, in no other number. answered: count - missing.
    accuracy: correct / answered; null when all are missing. interval: its 95 % interval (Wilson).
    unparsed: replies that give no answer, wrong ones therefore. cut_off: replies that ended at the length limit.
    chance: mean over the answered questions of `chance_level`.
    """
    answered = [record for record in records if record["correct"] is not None]
    correct = sum(record["correct"] for record in answered)
    return {
        "accuracy": correct / len(answered) if answered else None,
        "interval": list(wilson_interval(correct, len(answered))) if answered else None,
        "chance": sum(record["chance"] for record in answered) / len(answered) if answered else None,
        "count": len(records),
        "answered": len(answered),
        "missing": len(records) - len(answered),
        "correct": correct,
        "unparsed": sum(record["parsed"] is None for record in answered),
        "cut_off": sum(record["finish_reason"] == "length" for record in answered),
    }


def _mean_of_groups(groups: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> dict[str, Any]:
    """{name: mean of the groups' accuracies, name_interval: its bootstrap interval, Wilson's for one group}.

    Groups called "type/class" are averaged within each type first, then over the types.
    """
    counted = {key: counts for key, group in groups.items() if (counts := count_group(group))["answered"]}
    if not counted:
        return {name: None, f"{name}_interval": None}
    families = Counter(key.split("/")[0] for key in counted)
    weights = [1 / (len(families) * families[key.split("/")[0]]) for key in counted]
    parts = [(counts["correct"], counts["answered"]) for counts in counted.values()]
    mean = sum(weight * correct / count for weight, (correct, count) in zip(weights, parts, strict=True))
    interval = wilson_interval(*parts[0]) if len(parts) == 1 else interval_of_mean_share(parts, weights)
    return {name: mean, f"{name}_interval": list(interval)}


def _count_exam(name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    over_subsets = exam_format(name).mean_over == "subsets"
    parts = grouped(records, "subset") if over_subsets else {_UNNAMED: records}
    return {**count_group(records), **_mean_of_groups(parts, "published_score")}


def grouped(records: Iterable[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    """{value under the key: records}, in the order of first appearance; "-" for records without it."""
    groups: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record.get(key) or _UNNAMED].append(record)
    return dict(groups)


def format_scores(scores: Mapping[str, Any]) -> str:
    """The scores as a table for a terminal: one row for each source and question type, then the total."""
    rows: list[tuple[str, ...]] = [
        (
            "source",
            "question type",
            "questions",
            "correct",
            "accuracy",
            "95 % interval",
            "chance",
            "unparsed",
            "missing",
        )
    ]
    for source, kinds in scores["by_source_and_question_type"].items():
        rows += [(source, kind, *_cells(counts)) for kind, counts in kinds.items()]
        if len(kinds) > 1 and len(scores["by_source"]) > 1:
            rows.append((source, "all", *_cells(scores["by_source"][source])))
    rows.append(("total", "all", *_cells(scores)))
    return format_table(rows, left_columns=2)


def format_table(rows: Sequence[Sequence[str]], left_columns: int = 1) -> str:
    """Rows as aligned lines; Chinese characters take two columns of a terminal."""
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            _padded(cell, width, column < left_columns)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def percent(share: float | None) -> str:
    """A share as "45.2", "-" for none."""
    return "-" if share is None else f"{100 * share:.1f}"


def _cells(counts: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = counts["interval"] or (None, None)
    return (
        str(counts["count"]),
        str(counts["correct"]),
        f"{percent(counts['accuracy'])} %",
        f"{percent(low)} to {percent(high)} %",
        f"{percent(counts['chance'])} %",
        str(counts["unparsed"]),
        str(counts["missing"]),
    )


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _padded(text: str, width: int, left: bool) -> str:
    blanks = " " * (width - _width(text))
    return text + blanks if left else blanks + text
