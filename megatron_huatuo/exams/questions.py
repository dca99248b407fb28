"""The questions of an exam: files read in their formats, a part of them chosen, examples found, and the level of chance.

Invariant: ids are unique within an exam, so that replies can be told apart, and what is chosen depends on the seed alone.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.exams.exam_format import ExamQuestion
from megatron_huatuo.exams.exam_formats import exam_format, recognise_format
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.record_files import read_records
from megatron_huatuo.storage.records import Question

AUTO = "auto"
_MEDICAL = "medical"


def read_questions(
    paths: Sequence[str | os.PathLike[str]],
    bad_lines: BadLines | None = None,
    format_name: str = AUTO,
    answer_key: str | os.PathLike[str] | None = None,
) -> list[ExamQuestion]:
    """All questions of the files, in order.

    format_name: of an exam format, or "auto": each file is recognised by its beginning.
    answer_key: file of the answers (`read_answer_key`); then only the questions in it are given.
    A question without id gets "FILE NAME:LINE". An id that another exam has already gets "#2", "#3", …, with one warning.
    Raises: DataError naming file and line; also when there is no question at all.
    """
    bad = BadLines() if bad_lines is None else bad_lines
    answers = None if answer_key is None else read_answer_key(answer_key)
    questions: list[ExamQuestion] = []
    used: Counter[str] = Counter()
    for path in map(Path, paths):
        chosen = recognise_format(path) if format_name == AUTO else exam_format(format_name)
        for question in chosen.read(path, bad, answers):
            identifier = question.id.replace(f"{path}:", f"{path.name}:", 1)
            used[identifier] += 1
            if used[identifier] > 1:
                identifier = f"{identifier}#{used[identifier]}"
            questions.append(replace(question, id=identifier))
    if not questions:
        raise DataError(f"no questions: {', '.join(map(str, paths))}. Give at least one file with exam questions.")
    if answers is not None and len(used) < len(answers):
        absent = [identifier for identifier in answers if identifier not in used]
        raise DataError(
            f"{len(absent)} answers of the key have no question: {', '.join(absent[:5])} ({answer_key}). "
            "Give all question files that it belongs to."
        )
    if repeated := sum(count - 1 for count in used.values()):
        get_logger(__name__).warning(
            "%d questions have an id that another exam has; they are told apart by #2, #3, …", repeated
        )
    return questions


def read_answer_key(path: str | os.PathLike[str]) -> dict[str, Any]:
    """{id: answer} of a JSON file: one object of them, or records with `id` and `answer` (JSON or JSON Lines).

    Raises: DataError naming the file for anything else, and for a repeated id.
    """
    answers: dict[str, Any] = {}
    for raw, where in read_records(path, lambda raw, where: [(raw, where)]):
        if not isinstance(raw, dict):
            raise DataError(f"wrong answer key: got {type(raw).__name__}, need an object ({where})")
        entries = {str(raw["id"]): raw["answer"]} if {"id", "answer"} <= raw.keys() else raw
        if repeated := answers.keys() & entries.keys():
            raise DataError(f"repeated id in the answer key: got {min(repeated)!r} twice, need each once ({where})")
        answers |= entries
    if not answers:
        raise DataError(f"no answers: {path}. Give a file of {{id: answer}}.")
    return answers


def select_questions(
    questions: Sequence[ExamQuestion], subsets: Sequence[str] = (), limit: int | None = None, seed: int = 0
) -> list[ExamQuestion]:
    """The questions of some subsets, and of those at most `limit`, drawn by the seed; the order of the exam stays.

    subsets: names as in the question's subset, source or question type, capitals or not; "medical" stands for those
        subsets that the format calls medical.
    Raises: ConfigError for a subset that does not exist.
    """
    wanted = {name.casefold() for name in subsets}
    names = [
        {name for name in (q.subset, q.source, q.question_type, _MEDICAL if _is_medical(q) else None) if name}
        for q in questions
    ]
    known = {name.casefold(): name for group in names for name in group}
    if unknown := sorted(wanted - known.keys()):
        needed = (
            f"some of {', '.join(sorted(known.values()))}"
            if known
            else "none: the questions name neither subsets nor types"
        )
        raise ConfigError(f"unknown subset: got {', '.join(unknown)}, need {needed}.")
    chosen = [
        question
        for question, group in zip(questions, names, strict=True)
        if not wanted or wanted & {name.casefold() for name in group}
    ]
    if limit is None or limit >= len(chosen):
        return chosen
    kept = sorted(random.Random(f"limit {seed}").sample(range(len(chosen)), limit))
    return [chosen[index] for index in kept]


def _is_medical(question: ExamQuestion) -> bool:
    return question.subset in exam_format(question.exam).subsets


def find_examples(
    question: ExamQuestion, candidates: Sequence[ExamQuestion], count: int, seed: int
) -> list[ExamQuestion]:
    """The solved examples that a few-shot prompt shows before `question`, never the question itself.

    They are of its exam, and of its subset and question type as far as there are enough: by the rule of the format the
    first ones, or drawn by the seed and the question's id, so that they stay the same whatever else is asked.
    Raises: DataError when there are not enough of its exam.
    """
    others = [c for c in candidates if c.exam == question.exam and c.question.strip() != question.question.strip()]
    if len(others) < count:
        raise DataError(
            f"not enough examples: got {len(others)} of exam {question.exam!r}, need {count}. "
            "Ask for fewer with --few-shot, or name a file of more with --few-shot-from."
        )
    generator = random.Random(f"few-shot {seed} {question.id}")
    if exam_format(question.exam).few_shot_rule == "sample":
        others = generator.sample(others, len(others))
    kinds = (question.subset, question.question_type, question.source)
    alike = sorted(others, key=lambda c: -sum(map(_equal, (c.subset, c.question_type, c.source), kinds)))
    return alike[:count]


def _equal(one: object, other: object) -> bool:
    return one == other


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
