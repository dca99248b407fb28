"""C-Eval: one CSV for each subject with `id`, `question`, `A` to `D` and `answer`; the file's name is the subject.

Prompt, examples (the first five of `dev/`) and score (mean over the subjects) are those of the authors' README. The test split keeps
its answers; papers compare on `val/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from megatron_huatuo.exams.exam_format import (
    ExamFormat,
    ExamQuestion,
    FileHead,
    QuestionPlace,
    text_of,
)


class CEval(ExamFormat):
    """All its subjects are read; `subsets` names the medical ones."""

    name = "ceval"
    title = "C-Eval"
    mean_over = "subsets"
    few_shot_rule = "first"
    obtain = (
        "https://huggingface.co/datasets/ceval/ceval-exam, ceval-exam.zip: val/SUBJECT_val.csv; examples are in "
        "dev/SUBJECT_dev.csv."
    )
    subsets: ClassVar[Mapping[str, str]] = {
        "basic_medicine": "基础医学",
        "clinical_medicine": "临床医学",
        "physician": "医师资格",
    }

    def recognises(self, head: FileHead) -> bool:
        """Its columns, in small letters but for the options."""
        return {"id", "question", "A", "B", "C", "D"} <= set(head.columns)

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """One row; the test split has no `answer`."""
        options = (text_of(raw, letter, place) for letter in "ABCD")
        return [
            self.of_subject(
                place,
                text_of(raw, "id", place),
                text_of(raw, "question", place),
                options,
                (raw.get("answer") or "").strip(),
            )
        ]

    def instruction(self, question: ExamQuestion) -> str:
        """The authors' words; a subject that is not medical goes by its English name."""
        subject = question.subset or ""
        return f"以下是中国关于{self.subsets.get(subject, subject.replace('_', ' '))}考试的单项选择题，请选出其中的正确答案。"

    def prompt(self, question: ExamQuestion, examples: Sequence[ExamQuestion] = ()) -> str:
        """A model that chats gets the same text as one that completes."""
        return self.completion(question, examples)


FORMAT = CEval()
