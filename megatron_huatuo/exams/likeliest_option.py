"""An exam by log-likelihood: which questions it can ask, what a model reads, where its score begins, and which option wins.

Invariant: an exam during training and one of the exported model take all four from here, so that they differ in nothing but
who computes the likelihoods. Context and continuation are parted as lm-evaluation-harness parts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from megatron_huatuo.exams.exam_format import ExamQuestion
from megatron_huatuo.exams.exam_formats import OWN, exam_format
from megatron_huatuo.exams.questions import smallest_answers

PUBLISHED = "published"


class OptionTexts(NamedTuple):
    """What a model reads of one question. context: all before the answer. choices: {letter: how it goes on}."""

    context: str
    choices: dict[str, str]


def with_one_letter(questions: Sequence[ExamQuestion]) -> list[int]:
    """Numbers of the questions that ask for one letter: the likeliest option cannot answer the others."""
    return [index for index, smallest in enumerate(smallest_answers(questions)) if smallest == 0]


def option_texts(
    question: ExamQuestion, examples: Sequence[ExamQuestion] = (), *, prompt: str = PUBLISHED, by_text: bool = False
) -> OptionTexts:
    """The texts of one question.

    prompt: published (the words of its exam) or recipe. by_text: the options are not shown, their texts are scored.
    """
    chosen = exam_format(question.exam if prompt == PUBLISHED else OWN)
    return OptionTexts(
        chosen.completion(question, examples, by_text=by_text), chosen.choices(question, by_text=by_text)
    )


def part_tokens(encode: Callable[[str], Sequence[int]], context: str, continuation: str) -> tuple[list[int], list[int]]:
    """(tokens of the context, tokens of the continuation) of both in one text; neither is changed by the other's end.

    Blanks at the end of the context go to the continuation, whose first token may otherwise hold them.

    >>> part_tokens(lambda text: [ord(character) for character in text], "a ", "B")
    ([97], [32, 66])
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole, start = list(encode(stripped + continuation)), len(encode(stripped))
    start = min(start, len(whole) - 1)  # the continuation may melt into the last token of the context
    return whole[:start], whole[start:]


def likeliest(letters: Sequence[str], values: Sequence[float]) -> str:
    """The letter of the largest value, the first of equals.

    >>> likeliest("ABC", [-2.0, -1.0, -1.0])
    'B'
    """
    return letters[values.index(max(values))]
