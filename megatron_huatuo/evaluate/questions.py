"""Exam questions: reading them in every accepted layout, and the zero-shot prompt that asks one.

Invariant: ids are unique within an exam, so that replies can be told apart.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_huatuo.errors import DataError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.jsonl import BadLines, read_records
from megatron_huatuo.storage.records import Question, parse_questions

_INSTRUCTION = "请回答下面选择题。"


def read_questions(paths: Sequence[str | os.PathLike[str]], bad_lines: BadLines | None = None) -> list[Question]:
    """All questions of the files, in order: JSON Lines, one JSON array, or one object `{exam name: [question…]}`.

    A question without id gets "FILE NAME:LINE". An id that is taken already gets "#2", "#3", …, with one warning.
    Raises: DataError naming file and line; also when there is no question at all.
    """
    questions: list[Question] = []
    used: Counter[str] = Counter()
    for path in paths:
        for question in read_records(path, parse_questions, bad_lines):
            identifier = question.id.replace(f"{path}:", f"{Path(path).name}:", 1)
            used[identifier] += 1
            if used[identifier] > 1:
                identifier = f"{identifier}#{used[identifier]}"
            questions.append(replace(question, id=identifier))
    if not questions:
        raise DataError(f"no questions: {', '.join(map(str, paths))}. Give at least one file with exam questions.")
    if repeated := sum(count - 1 for count in used.values()):
        get_logger(__name__).warning(
            "%d questions have an id that is taken; they are told apart by #2, #3, …", repeated
        )
    return questions


def question_prompt(question: Question) -> str:
    """The zero-shot prompt of the recipe; options without text are left out, as in the reference."""
    kind = f"[{question.question_type}]" if question.question_type else ""
    options = [f"{letter}. {text}" for letter, text in question.option.items() if text.strip()]
    return "\n".join([_INSTRUCTION, f"{kind}{question.question}", *options])


def smallest_answers(questions: Sequence[Question]) -> list[int]:
    """For each question: the fewest letters that an answer may have; 0 where just one letter is asked for.

    1 or 2 where several letters are asked for: 1 when an answer of that kind has one letter. The kind is the question type: one with any answer of several letters asks for several. A question without type is
    its own kind.

    >>> one, two = Question("1", "?", {}, "A", "x"), Question("2", "?", {}, "BC", "x")
    >>> smallest_answers([one]), smallest_answers([one, two]), smallest_answers([two])
    ([0], [1, 1], [2])
    """
    sizes: defaultdict[str | None, list[int]] = defaultdict(list)
    for question in questions:
        sizes[question.question_type].append(len(question.answer))
    of_kind = [
        [len(question.answer)] if question.question_type is None else sizes[question.question_type]
        for question in questions
    ]
    return [min(*kind, 2) if max(kind) > 1 else 0 for kind in of_kind]


def chance_level(num_options: int, smallest_answer: int) -> float:
    """Probability that a guess is right, for a guesser who knows what is asked for.

    num_options: k, options with a text. smallest_answer: as given by `smallest_answers`.
    One letter: 1 / k. Several letters, m at least: 1 / (number of subsets of m letters or more)
    = 1 / (2^k - sum over j < m of C(k, j)): for m = 1 it is 1 / (2^k - 1), for m = 2 it is 1 / (2^k - 1 - k).

    >>> [chance_level(5, m) for m in (0, 1, 2)] == [1 / 5, 1 / 31, 1 / 26]
    True
    """
    if smallest_answer == 0:
        return 1 / num_options
    too_small = sum(math.comb(num_options, size) for size in range(smallest_answer))
    return 1 / (2**num_options - too_small)
