"""Result directories of finished exams, as the comparison and the tables read them.

Invariant: only a directory whose manifest and files belong together is read, so no torn or mixed result is compared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.exam_results import REPLIES, read_exam
from megatron_huatuo.storage.jsonl import read_jsonl


@dataclass(frozen=True)
class ExamResult:
    """One finished exam. records: {id: line of `replies.jsonl`}, in the order of the exam."""

    directory: Path
    model: str
    records: Mapping[str, Mapping[str, Any]]
    manifest: Mapping[str, Any]


def read_result(directory: str | os.PathLike[str]) -> ExamResult:
    """A finished exam. Raises: IntegrityError when it is unfinished, torn or changed; DataError for other content."""
    root = Path(directory)
    manifest, _ = read_exam(root)
    records = {line.record["id"]: line.record for line in read_jsonl(root / REPLIES)}
    if not all({"question", "answer", "correct", "exam"} <= record.keys() for record in records.values()):
        raise DataError(
            f"result of an older version: {root}/replies.jsonl lacks keys. Run the exam again: nothing is paid twice."
        )
    name = str(manifest["model"].get("model") or root.name)
    return ExamResult(root, Path(name).name if manifest["model"]["kind"] == "huggingface" else name, records, manifest)


def check_same_questions(results: Sequence[ExamResult]) -> None:
    """Refuse results of different question sets. Raises: DataError naming both directories and what differs."""
    first = results[0]
    for other in results[1:]:
        if alone := sorted(first.records.keys() ^ other.records.keys()):
            raise DataError(
                f"results of different question sets: {len(alone)} of {len(first.records.keys() | other.records.keys())} "
                f"questions are in one only, such as {alone[0]!r} ({first.directory}, {other.directory}). "
                "Compare runs with the same --questions, --subset, --limit and --seed."
            )
        for identifier, record in first.records.items():
            theirs = other.records[identifier]
            for key in ("question", "answer"):
                if record[key] != theirs[key]:
                    raise DataError(
                        f"results of different question sets: {key} of {identifier!r} is {str(record[key])[:60]!r} and "
                        f"{str(theirs[key])[:60]!r} ({first.directory}, {other.directory}). Compare runs with the same --questions."
                    )


def unique_names(results: Sequence[ExamResult]) -> list[str]:
    """A name for each result: its model's, with the directory's where two models are called alike."""
    names = [result.model for result in results]
    return [
        name if names.count(name) == 1 else f"{name} ({result.directory})"
        for name, result in zip(names, results, strict=True)
    ]
