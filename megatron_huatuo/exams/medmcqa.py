"""MedMCQA: JSON Lines `{"question", "opa", "opb", "opc", "opd", "cop", "subject_name", "id", …}`.

`cop` counts from 1 in the authors' files and from 0 in the Hugging Face copies; which of the two a file does is told from all its
values, never guessed. The prompt is that of lm-evaluation-harness (`medmcqa`); the published score is the accuracy on `dev.json`, since
the test split keeps its answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import DataError
from megatron_huatuo.exams.exam_format import (
    ExamFormat,
    ExamQuestion,
    FileHead,
    QuestionPlace,
    letter_of,
    lettered_options,
    option_lines,
    read_raw,
    text_of,
)
from megatron_huatuo.storage.jsonl import BadLines

_OPTIONS = ("opa", "opb", "opc", "opd")


class MedMCQA(ExamFormat):
    """Its subset is the subject."""

    name = "medmcqa"
    title = "MedMCQA"
    language = "en"
    obtain = "https://github.com/medmcqa/medmcqa links the archive: dev.json (4,183 questions with answers)."

    def recognises(self, head: FileHead) -> bool:
        """The keys of the four options."""
        return isinstance(head.record, dict) and {*_OPTIONS, "question"} <= head.record.keys()

    def records(self, path: Path, bad_lines: BadLines) -> Iterable[tuple[int, Any]]:
        """The records, with `cop` made to count from 0."""
        records = list(read_raw(path, bad_lines))
        first = _first_number([raw.get("cop") for _, raw in records if isinstance(raw, dict)], path)
        for _, raw in records:
            if type(raw.get("cop")) is int:
                raw["cop"] -= first
        return records

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """One question; `cop` counts from 0 here."""
        option = lettered_options(text_of(raw, name, place) for name in _OPTIONS)
        return [
            ExamQuestion(
                id=str(raw.get("id", place)),
                question=text_of(raw, "question", place),
                option=option,
                answer=letter_of(raw.get("cop"), "ABCD", place, "cop"),
                source=self.title,
                exam=self.name,
                subset=raw.get("subject_name") or None,
            )
        ]

    def block(self, question: ExamQuestion) -> str:
        """As in lm-evaluation-harness."""
        return "\n".join([f"Question: {question.question}", "Choices:", *option_lines(question.option)])

    def completion(self, question: ExamQuestion, examples: Any = (), *, by_text: bool = False) -> str:
        """Without an instruction, as in lm-evaluation-harness."""
        return super().completion(question, examples, by_text=by_text).split("\n\n", 1)[1]


def _first_number(values: list[Any], path: Path) -> int:
    """0 or 1: what the answers of a file count from. Raises: DataError when they do not tell."""
    found = {value for value in values if type(value) is int}
    if found == {-1} or not found:
        raise DataError(
            f"no answers: `cop` is missing or -1 everywhere ({path}). Take dev.json: the test split has none."
        )
    if 0 in found and 4 in found:
        raise DataError(f"answers count from 0 and from 1: got `cop` {sorted(found)}, need 0 to 3 or 1 to 4 ({path}).")
    if 0 not in found and 4 not in found:
        raise DataError(
            f"cannot tell what the answers count from: got `cop` {sorted(found)}, need a 0 or a 4 among them ({path}). "
            "Give the whole file, and draw from it with --limit."
        )
    return 0 if 0 in found else 1


FORMAT = MedMCQA()
