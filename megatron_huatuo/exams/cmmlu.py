"""CMMLU: one CSV for each subject with an unnamed number, `Question`, `A` to `D` and `Answer`; the file's name is the subject.

Prompt, examples (the first five of `dev/`) and score (mean over the subjects) are those of the authors' src/mp_utils.py.
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


class CMMLU(ExamFormat):
    """All its subjects are read; `subsets` names the medical ones."""

    name = "cmmlu"
    title = "CMMLU"
    mean_over = "subsets"
    few_shot_rule = "first"
    obtain = "https://github.com/haonan-li/CMMLU: data/test/SUBJECT.csv; examples are in data/dev/SUBJECT.csv."
    subsets: ClassVar[Mapping[str, str]] = {
        "anatomy": "解剖学",
        "clinical_knowledge": "临床知识",
        "college_medical_statistics": "大学医学统计",
        "college_medicine": "大学医学",
        "genetics": "遗传学",
        "nutrition": "营养学",
        "professional_medicine": "专业医学",
        "traditional_chinese_medicine": "中医中药",
        "virology": "病毒学",
    }

    def recognises(self, head: FileHead) -> bool:
        """Its columns, `Question` and `Answer` in capitals."""
        return {"Question", "A", "B", "C", "D", "Answer"} <= set(head.columns)

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """One row."""
        options = (text_of(raw, letter, place) for letter in "ABCD")
        return [
            self.of_subject(
                place,
                raw.get("") or place.number,
                text_of(raw, "Question", place),
                options,
                text_of(raw, "Answer", place),
            )
        ]

    def instruction(self, question: ExamQuestion) -> str:
        """The authors' words; a subject that is not medical goes by its English name."""
        subject = question.subset or ""
        return (
            f"以下是关于{self.subsets.get(subject, subject.replace('_', ' '))}的单项选择题，请直接给出正确答案的选项。"
        )

    def block(self, question: ExamQuestion) -> str:
        """Question and options."""
        return f"题目：{super().block(question)}"

    def prompt(self, question: ExamQuestion, examples: Sequence[ExamQuestion] = ()) -> str:
        """A model that chats gets the same text as one that completes."""
        return self.completion(question, examples)

    def completion(
        self, question: ExamQuestion, examples: Sequence[ExamQuestion] = (), *, by_text: bool = False
    ) -> str:
        """The authors' answer tag is "答案是："."""
        return super().completion(question, examples, by_text=by_text).replace("\n答案：", "\n答案是：")


FORMAT = CMMLU()
