"""CMB-Exam: one JSON array of `{"exam_type", "exam_class", "exam_subject", "question", "question_type", "option", "answer"}`.

The prompts are those of the repository's workers/base.py (answer only: `query_prompt_2`). Its test questions carry ids and no
answers, which lie in a file of their own. score.py takes the mean over the classes of each type; the leaderboard's average
is the mean of the types.
"""

from __future__ import annotations

from typing import Any

from megatron_huatuo.errors import DataError
from megatron_huatuo.exams.exam_format import ExamFormat, ExamQuestion, FileHead, QuestionPlace, text_of


class CMB(ExamFormat):
    """Its subsets are called "type/class"."""

    name = "cmb"
    title = "CMB"
    mean_over = "subsets"
    obtain = (
        "https://github.com/FreedomIntelligence/CMB: CMB-Exam/CMB-test/CMB-test-choice-question-merge.json, "
        "with --answer-key CMB-test-choice-answer.json; examples for few-shot prompts are in CMB-val-merge.json."
    )

    def recognises(self, head: FileHead) -> bool:
        """Keys that no other exam has."""
        return isinstance(head.record, dict) and {"exam_type", "exam_class", "option"} <= head.record.keys()

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """An `answer` that is absent is awaited from the answer key."""
        option = raw.get("option")
        if not isinstance(option, dict) or not all(isinstance(text, str) for text in option.values()):
            raise DataError(f"wrong value of 'option': got {type(option).__name__}, need an object of texts ({place})")
        subset = f"{text_of(raw, 'exam_type', place)}/{text_of(raw, 'exam_class', place)}"
        return [
            ExamQuestion(
                id=str(raw.get("id", place)),
                question=text_of(raw, "question", place),
                option=option,
                answer=text_of(raw, "answer", place) if raw.get("answer") is not None else "",
                question_type=text_of(raw, "question_type", place),
                source=self.title,
                exam=self.name,
                subset=subset,
            )
        ]

    def instruction(self, question: ExamQuestion) -> str:
        """`query_prompt_2` of the repository."""
        kind, _, class_name = (question.subset or "").partition("/")
        return f"以下是中国{kind}中{class_name}考试的一道{question.question_type}，不需要做任何分析和解释，直接输出答案选项。"

    def block(self, question: ExamQuestion) -> str:
        """The question type stands in the instruction."""
        return "\n".join([question.question, *(f"{k}. {text}" for k, text in question.option.items() if text.strip())])


FORMAT = CMB()
