"""MedQA of the United States (USMLE), in JSON Lines `{"question", "answer", "options", "meta_info", "answer_idx"}`.

Also the layout of the Hugging Face copies (`sent1`, `ending0`…, `label`). The authors published no prompt; the completion is the one of
lm-evaluation-harness (`medqa_4options`), the score the accuracy over all questions. The Mainland's half is in `medqa_mcmle`.
"""

from __future__ import annotations

from typing import Any

from megatron_huatuo.errors import DataError
from megatron_huatuo.exams.exam_format import (
    ExamFormat,
    ExamQuestion,
    FileHead,
    QuestionPlace,
    has_han,
    letter_of,
    lettered_options,
    text_of,
)


class MedQA(ExamFormat):
    """Its subset is the step of the exam."""

    name = "medqa"
    title = "MedQA (USMLE)"
    language = "en"
    obtain = (
        "https://github.com/jind11/MedQA links the archive: questions/US/test.jsonl (five options) or "
        "questions/US/4_options/phrases_no_exclude_test.jsonl."
    )

    def recognises(self, head: FileHead) -> bool:
        """Keys of either layout, in English."""
        return medqa_language(head) == self.language

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """One question of either layout."""
        if "ending0" in raw:
            option = lettered_options(raw[f"ending{number}"] for number in range(8) if f"ending{number}" in raw)
            question, answer = (
                text_of(raw, "sent1", place),
                letter_of(raw.get("label"), "".join(option), place, "label"),
            )
        else:
            options = raw.get("options")
            if not isinstance(options, dict) or not all(isinstance(text, str) for text in options.values()):
                raise DataError(f"wrong value of 'options': got {type(options).__name__}, need an object ({place})")
            option = {letter: text.strip().removesuffix('\n\\"').strip() for letter, text in options.items()}
            question, answer = text_of(raw, "question", place), text_of(raw, "answer_idx", place)
        return [
            ExamQuestion(
                id=str(raw.get("id", place)),
                question=question,
                option=option,
                answer=answer,
                source=self.title,
                exam=self.name,
                subset=raw.get("meta_info") or None,
            )
        ]

    def instruction(self, question: ExamQuestion) -> str:
        """What stands before the question in a request to a model that chats."""
        return "Please answer the following multiple-choice question."

    def block(self, question: ExamQuestion) -> str:
        """As in lm-evaluation-harness."""
        return f"Question: {super().block(question)}"

    def completion(self, question: ExamQuestion, examples: Any = (), *, by_text: bool = False) -> str:
        """Without an instruction, as in lm-evaluation-harness."""
        return super().completion(question, examples, by_text=by_text).split("\n\n", 1)[1]


def medqa_language(head: FileHead) -> str | None:
    """Language of a MedQA file, None for another exam's."""
    record = head.record
    if not isinstance(record, dict) or not ({"options", "answer_idx"} <= record.keys() or "ending0" in record):
        return None
    return "zh" if has_han(str(record.get("question") or record.get("sent1"))) else "en"


FORMAT = MedQA()
