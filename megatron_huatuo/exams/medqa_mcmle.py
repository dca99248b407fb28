"""MedQA of Mainland China (MCMLE), the Chinese half of the layout in `medqa`; asked with the prompt of the recipe."""

from __future__ import annotations

from typing import Any

from megatron_huatuo.exams.exam_format import ExamFormat, ExamQuestion, FileHead
from megatron_huatuo.exams.medqa import MedQA, medqa_language


class MedQAMainland(MedQA):
    """The authors published no prompt; HuatuoGPT-II's evaluation asks it with its own."""

    name = "medqa_mcmle"
    title = "MedQA (MCMLE)"
    language = "zh"
    obtain = (
        "https://github.com/jind11/MedQA links the archive: questions/Mainland/test.jsonl, or "
        "questions/Mainland/4_options/test.jsonl."
    )

    def recognises(self, head: FileHead) -> bool:
        """Keys of either layout, in Chinese."""
        return medqa_language(head) == self.language

    def instruction(self, question: ExamQuestion) -> str:
        """The recipe's."""
        return ExamFormat.instruction(self, question)

    def block(self, question: ExamQuestion) -> str:
        """The recipe's."""
        return ExamFormat.block(self, question)

    def completion(self, question: ExamQuestion, examples: Any = (), *, by_text: bool = False) -> str:
        """The recipe's prompt, going on with the answer."""
        return ExamFormat.completion(self, question, examples, by_text=by_text)


FORMAT = MedQAMainland()
