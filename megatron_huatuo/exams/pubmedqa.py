"""PubMedQA (PQA-L): one object `{pmid: {"QUESTION", "CONTEXTS": [text…], "final_decision": "yes"|"no"|"maybe", …}}`.

The prompt is that of lm-evaluation-harness (`pubmedqa`); the score is the accuracy, on the 500 test questions when their key is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import DataError
from megatron_huatuo.exams.exam_format import (
    ExamFormat,
    ExamQuestion,
    FileHead,
    QuestionPlace,
    read_raw,
    text_of,
)
from megatron_huatuo.storage.jsonl import BadLines

_DECISIONS = {"yes": "A", "no": "B", "maybe": "C"}


class PubMedQA(ExamFormat):
    """The three decisions are its options; they are shown by the instruction, not as a list."""

    name = "pubmedqa"
    title = "PubMedQA"
    language = "en"
    obtain = (
        "https://github.com/pubmedqa/pubmedqa: data/ori_pqal.json, with --answer-key data/test_ground_truth.json for the "
        "500 test questions."
    )

    def recognises(self, head: FileHead) -> bool:
        """An object of objects with `QUESTION`, or one of those."""
        record = head.record
        if isinstance(record, dict) and record and all(isinstance(entry, dict) for entry in record.values()):
            record = next(iter(record.values()))
        return isinstance(record, dict) and {"QUESTION", "CONTEXTS"} <= record.keys()

    def records(self, path: Path, bad_lines: BadLines) -> Iterable[tuple[int, Any]]:
        """One record for each article, its number under `id`."""
        for number, raw in read_raw(path, bad_lines):
            if "QUESTION" in raw:
                yield number, raw
                continue
            for place, (identifier, entry) in enumerate(raw.items(), start=1):
                yield place, {**entry, "id": identifier} if isinstance(entry, dict) else entry

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """The abstract stands before the question."""
        contexts = raw.get("CONTEXTS") if isinstance(raw, dict) else None
        if not isinstance(contexts, list) or not all(isinstance(text, str) for text in contexts):
            raise DataError(f"wrong value of 'CONTEXTS': got {type(contexts).__name__}, need a list of texts ({place})")
        abstract = "\n".join(contexts)
        decision = raw.get("final_decision")
        return [
            ExamQuestion(
                id=str(raw.get("id", place)),
                question=f"Abstract: {abstract}\nQuestion: {text_of(raw, 'QUESTION', place)}",
                option={letter: word for word, letter in _DECISIONS.items()},
                answer="" if decision is None else self.answer_from_key(decision, place),
                source=self.title,
                exam=self.name,
            )
        ]

    def answer_from_key(self, value: Any, place: QuestionPlace) -> str:
        """The letter of a decision."""
        if value not in _DECISIONS:
            raise DataError(f"wrong value of 'final_decision': got {value!r}, need yes, no or maybe ({place})")
        return _DECISIONS[value]

    def stem(self, question: ExamQuestion) -> str:
        """None: a "not" in a yes-no question turns no verdict round."""
        return ""

    def instruction(self, question: ExamQuestion) -> str:
        """For a model that chats."""
        return "Answer the question about the abstract with yes, no or maybe."

    def block(self, question: ExamQuestion) -> str:
        """Abstract and question."""
        return question.question

    def completion(
        self, question: ExamQuestion, examples: Sequence[ExamQuestion] = (), *, by_text: bool = False
    ) -> str:
        """Without an instruction, going on with the decision as a word."""
        return super().completion(question, examples, by_text=True).split("\n\n", 1)[1]

    def choices(self, question: ExamQuestion, *, by_text: bool = False) -> dict[str, str]:
        """The words, never letters."""
        return super().choices(question, by_text=True)


FORMAT = PubMedQA()
