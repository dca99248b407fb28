"""CMExam: CSV with `Question`, `Options` ("A text", one a line), `Answer`, and further columns about the question.

The prompt is template 1 of the repository's src/preprocess/prompt_templates.py, blanks included; the score is the accuracy over
all questions, all letters of the answer right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from megatron_huatuo.errors import DataError
from megatron_huatuo.exams.exam_format import ExamFormat, ExamQuestion, FileHead, QuestionPlace, text_of

_OPTION = re.compile(r"^\s*([A-H])[\s.、:：．]\s*(.*?)\s*$")


class CMExam(ExamFormat):
    """Its subset is the clinical department, where the file has that column."""

    name = "cmexam"
    title = "CMExam"
    obtain = "https://github.com/williamliujl/CMExam: data/test_with_annotations.csv; examples are in data/train.csv."

    def recognises(self, head: FileHead) -> bool:
        """The three columns that all its files have."""
        return {"Question", "Options", "Answer"} <= set(head.columns)

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """An option may go on over several lines."""
        option: dict[str, str] = {}
        for line in text_of(raw, "Options", place).splitlines():
            if (match := _OPTION.match(line)) and match[1] not in option:
                option[match[1]] = match[2]
            elif option:
                last = next(reversed(option))
                option[last] = f"{option[last]} {line.strip()}".strip()
            else:
                raise DataError(f"wrong value of 'Options': got {line[:40]!r}, need lines such as 'A text' ({place})")
        return [
            ExamQuestion(
                id=str(place),
                question=text_of(raw, "Question", place),
                option=option,
                answer=text_of(raw, "Answer", place),
                source=self.title,
                exam=self.name,
                subset=(raw.get("Clinical Department") or "").strip() or None,
            )
        ]

    def block(self, question: ExamQuestion) -> str:
        """Question and options as the template puts them."""
        lines = "\n".join(f"{letter} {text}" for letter, text in question.option.items() if text.strip())
        return f"问题: {question.question}, \n 选项: {lines}"

    def prompt(self, question: ExamQuestion, examples: Sequence[ExamQuestion] = ()) -> str:
        """No instruction stands before it."""
        return self.completion(question, examples) if examples else self.block(question)

    def completion(
        self, question: ExamQuestion, examples: Sequence[ExamQuestion] = (), *, by_text: bool = False
    ) -> str:
        """The template's answer begins with "答案: "."""
        parts = [
            f"{q.question if by_text else self.block(q)}\n答案: {self.choices(q, by_text=by_text)[q.answer] if q is not question else ''}"
            for q in (*examples, question)
        ]
        return "\n\n".join(parts)


FORMAT = CMExam()
