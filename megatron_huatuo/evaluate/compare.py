"""Models compared on the same questions: paired differences with intervals, exact tests, corrected for their number.

Invariant: only questions that both models of a pair answered are counted; what is missing is said.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answering.replies import output_directory
from megatron_huatuo.evaluate.result_directory import ExamResult, check_same_questions, read_result, unique_names
from megatron_huatuo.evaluate.score import count_group, format_table, percent
from megatron_huatuo.evaluate.significance import holm, interval_of_paired_difference, mcnemar_exact
from megatron_huatuo.storage.manifest import MANIFEST_NAME, write_json, write_manifest

_LEVEL = 0.05


def run_compare(results: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> dict[str, Any]:
    """Compare every two of the finished exams and return the content of `comparison.json`.

    results: output directories of `run_exam` on the same questions, two at least.
    output: directory for `comparison.json` and `manifest.json`.
    Raises: DataError when the questions differ; IntegrityError when a result is unfinished or changed.
    """
    if len(results) < 2:
        raise ConfigError(
            f"nothing to compare: got {len(results)} result directory, need two at least. Name more after --results."
        )
    read = [read_result(directory) for directory in results]
    check_same_questions(read)
    names = unique_names(read)
    models = [
        {"name": name, "results": str(result.directory), **count_group(list(result.records.values()))}
        for name, result in zip(names, read, strict=True)
    ]
    pairs = [
        {"a": names[i], "b": names[j], **_compare_pair(read[i], read[j])}
        for i, j in itertools.combinations(range(len(read)), 2)
    ]
    for pair, corrected in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_value_holm"] = corrected
    comparison = {"models": models, "pairs": pairs, "comparisons": len(pairs), "level": _LEVEL}
    with output_directory(output) as directory:
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        write_json(directory / "comparison.json", comparison)
        sources = [
            {"results": str(result.directory), "manifest_sha256": result.manifest.get("manifest_sha256")}
            for result in read
        ]
        write_manifest(directory, "comparison", {"results": sources}, ["comparison.json"])
    return comparison


def _compare_pair(a: ExamResult, b: ExamResult) -> dict[str, Any]:
    """Accuracies on the questions that both answered, their difference A - B with its interval, and the p-value."""
    both = [
        (a.records[key]["correct"], b.records[key]["correct"])
        for key in a.records
        if a.records[key]["correct"] is not None and b.records[key]["correct"] is not None
    ]
    count, only_a, only_b = len(both), both.count((True, False)), both.count((False, True))
    return {
        "questions": count,
        "missing": len(a.records) - count,
        "accuracy_a": sum(right for right, _ in both) / count if count else None,
        "accuracy_b": sum(right for _, right in both) / count if count else None,
        "difference": (only_a - only_b) / count if count else None,
        "interval": list(interval_of_paired_difference(only_a, only_b, count)) if count else None,
        "both_right": both.count((True, True)),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "both_wrong": both.count((False, False)),
        "p_value": mcnemar_exact(only_a, only_b),
    }


def format_comparison(comparison: dict[str, Any]) -> str:
    """The comparison as tables for a terminal."""
    models = [("model", "questions", "accuracy", "95 % interval", "missing")]
    for model in comparison["models"]:
        low, high = model["interval"] or (None, None)
        models.append(
            (
                model["name"],
                str(model["count"]),
                f"{percent(model['accuracy'])} %",
                f"{percent(low)} to {percent(high)} %",
                str(model["missing"]),
            )
        )
    pairs = [("A", "B", "A - B", "95 % interval", "only A", "only B", "p", "p (Holm)", "")]
    for pair in comparison["pairs"]:
        low, high = pair["interval"] or (None, None)
        pairs.append(
            (
                pair["a"],
                pair["b"],
                f"{percent(pair['difference'])} points",
                f"{percent(low)} to {percent(high)}",
                str(pair["only_a_right"]),
                str(pair["only_b_right"]),
                f"{pair['p_value']:.2g}",
                f"{pair['p_value_holm']:.2g}",
                "differ" if pair["p_value_holm"] < comparison["level"] else "may be equal",
            )
        )
    return f"{format_table(models)}\n\n{format_table(pairs, left_columns=2)}"
