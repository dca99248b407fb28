"""Answers files for the judge, in the layouts of the published HuatuoGPT-II answers and of our `replies.jsonl`."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.record_files import read_records

_QUESTION_KEYS = ("query", "prompt", "question")
_ANSWER_KEYS = ("model_output", "reply", "answer")


class Answer(NamedTuple):
    """One model's answer to one question. label: the kind of question, where the file names it."""

    id: str
    question: str
    text: str
    label: str | None


def read_answers(path: str | os.PathLike[str]) -> dict[str, Answer]:
    """{id: answer} of a `.json` array or JSON Lines with `id`, the question and the answer.

    The question is `query`, `prompt` or `question`; the answer is `model_output`, `reply` or `answer`.
    Raises: DataError naming file, line and key; for a repeated id; for an empty file.
    """
    answers: dict[str, Answer] = {}
    for answer, where in read_records(path, _parse_answer):
        if answer.id in answers:
            raise DataError(f"repeated id: got {answer.id!r} twice, need each once ({where}). Remove one.")
        answers[answer.id] = answer
    if not answers:
        raise DataError(f"no answers: {path}. Give a file with `id`, `query` and `model_output`.")
    return answers


def _parse_answer(raw: Any, where: str) -> list[tuple[Answer, str]]:
    if not isinstance(raw, dict):
        raise DataError(f"wrong record: got {type(raw).__name__}, need an object ({where})")
    identifier = raw.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
        raise DataError(f"wrong value of 'id': got {type(identifier).__name__}, need text or a whole number ({where})")
    label = raw.get("label")
    answer = Answer(
        str(identifier),
        _first_text(raw, _QUESTION_KEYS, where),
        _first_text(raw, _ANSWER_KEYS, where),
        label if isinstance(label, str) else None,
    )
    return [(answer, where)]


def _first_text(raw: dict[str, Any], keys: tuple[str, ...], where: str) -> str:
    for key in keys:
        if isinstance(raw.get(key), str):
            return raw[key]
    raise DataError(f"no text under any of {', '.join(keys)}: got keys {sorted(raw)[:8]} ({where})")


def pair_answers(path_a: str | os.PathLike[str], path_b: str | os.PathLike[str]) -> list[tuple[Answer, Answer]]:
    """Answers of two files to the same questions, in the order of the first file.

    Raises: DataError when an id is in one file only, or the questions differ.
    """
    answers_a, answers_b = read_answers(path_a), read_answers(path_b)
    if alone := sorted(answers_a.keys() ^ answers_b.keys()):
        raise DataError(
            f"{len(alone)} ids are in one file only: {', '.join(alone[:5])} ({path_a}, {path_b}). "
            "Give two files that answer the same questions."
        )
    for identifier, answer in answers_a.items():
        if answer.question.strip() != answers_b[identifier].question.strip():
            raise DataError(f"different questions under id {identifier!r} ({path_a}, {path_b}). Give matching files.")
    return [(answer, answers_b[identifier]) for identifier, answer in answers_a.items()]
