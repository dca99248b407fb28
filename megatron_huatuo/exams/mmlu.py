"""MMLU: one CSV for each subject without a header, of question, four options and answer; the file's name is the subject.

Prompt and examples (the first five of `dev/`) are those of the authors' evaluate.py, two blanks after "about" included. The authors'
score is the mean over all questions. The medical subjects are those of MultiMedQA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from megatron_huatuo.errors import DataError
from megatron_huatuo.exams.exam_format import (
    ExamFormat,
    ExamQuestion,
    FileHead,
    QuestionPlace,
    read_csv_rows,
)
from megatron_huatuo.storage.jsonl import BadLines

_COLUMNS = 6


class MMLU(ExamFormat):
    """All its subjects are read; `subsets` names the medical ones."""

    name = "mmlu"
    title = "MMLU"
    language = "en"
    few_shot_rule = "first"
    obtain = (
        "https://github.com/hendrycks/test links data.tar: data/test/SUBJECT_test.csv; examples are in "
        "data/dev/SUBJECT_dev.csv."
    )
    subsets: ClassVar[Mapping[str, str]] = {
        name: name.replace("_", " ")
        for name in (
            *("anatomy", "clinical_knowledge", "college_biology"),
            *("college_medicine", "medical_genetics", "professional_medicine"),
        )
    }

    def recognises(self, head: FileHead) -> bool:
        """Six columns without a header: the last cell of the first row is a letter."""
        has_header = "question" in head.columns
        return len(head.columns) == _COLUMNS and head.columns[-1].strip() in {*"ABCD"} and not has_header

    def records(self, path: Path, bad_lines: BadLines) -> Iterable[tuple[int, Any]]:
        """Rows from the first one on."""
        return enumerate(read_csv_rows(path), start=1)

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """One row."""
        if len(raw) != _COLUMNS or not raw[0].strip():
            raise DataError(f"wrong row: got {len(raw)} cells, need question, four options and answer ({place})")
        options = raw[1:5]
        return [self.of_subject(place, place.number, raw[0].strip(), options, raw[5].strip())]

    def instruction(self, question: ExamQuestion) -> str:
        """The authors' words."""
        subject = (question.subset or "").replace("_", " ")
        return f"The following are multiple choice questions (with answers) about  {subject}."

    def prompt(self, question: ExamQuestion, examples: Sequence[ExamQuestion] = ()) -> str:
        """A model that chats gets the same text as one that completes."""
        return self.completion(question, examples)


FORMAT = MMLU()
