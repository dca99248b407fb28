"""The layout of this project: `{"question", "option": {"A": …}, "answer", "question_type"?, "source"?}`, or grouped by exam.

It is the layout of the published HuatuoGPT-II evaluation, and what every file is taken for that no published exam claims.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_huatuo.exams.exam_format import ExamFormat, ExamQuestion, FileHead, QuestionPlace, has_han
from megatron_huatuo.storage.records import Question, parse_questions


class OwnLayout(ExamFormat):
    """Records of the project, one question or one `{exam name: [question…]}` each."""

    name = "own"
    title = "Exam"
    obtain = "You write it: docs/data_formats.md has the keys."

    def recognises(self, head: FileHead) -> bool:
        """The records that the contract describes."""
        return isinstance(head.record, dict) and {"question", "option"} <= head.record.keys()

    def language_of(self, question: ExamQuestion) -> str:
        """Chinese where the question or an option holds a Chinese character."""
        return "zh" if has_han(question.question + "".join(question.option.values())) else "en"

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """See `storage.records.parse_questions`."""
        return [as_exam_question(question, self.name) for question in parse_questions(raw, str(place))]


def as_exam_question(question: Question, exam: str) -> ExamQuestion:
    """A plain question as one of an exam."""
    fields = {field.name: getattr(question, field.name) for field in dataclasses.fields(Question)}
    return ExamQuestion(**fields, exam=exam)


FORMAT = OwnLayout()
