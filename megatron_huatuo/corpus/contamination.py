"""Contamination: passages that share text with an exam.

Invariant: a hit is a run of `n` neighbouring tokens that stands in both, whatever the punctuation, case and spacing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.record_files import read_records
from megatron_huatuo.storage.records import Question, parse_questions

CHARACTERS_ZH = 13
WORDS_EN = 8
_HAN = re.compile("[\u3400-\u9fff]")
_TOKEN = re.compile(r"\w+")


class Hit(NamedTuple):
    """A passage and a question that share `text`."""

    question: str
    text: str


class ExamIndex:
    """The runs of all exam questions: 13 tokens where Chinese is in them, 8 words of English."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._first_question: dict[tuple[str, ...], str] = {}
        for question in questions:
            for text in (question.question, *question.option.values()):
                for run in _runs(text):
                    self._first_question.setdefault(run, question.id)

    def find(self, text: str) -> Hit | None:
        """The first hit in a passage, or None."""
        for run in _runs(text):
            if (question := self._first_question.get(run)) is not None:
                return Hit(question, _join(run))
        return None


def load_exams(files: Iterable[str | os.PathLike[str]]) -> ExamIndex:
    """Read exam files. Raises DataError for a bad question, ConfigError when there is none that could be found."""
    index = ExamIndex(question for path in files for question in read_records(path, parse_questions))
    if not index._first_question:
        raise ConfigError(
            f"no exam question is long enough to be found: need {CHARACTERS_ZH} characters or {WORDS_EN} words."
        )
    return index


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    """Runs of neighbouring tokens: a Han character is a token, any other word is one."""
    tokens = _TOKEN.findall(_HAN.sub(lambda match: f" {match.group()} ", text.lower()))
    for start in range(len(tokens) - WORDS_EN + 1):
        run = tokens[start : start + CHARACTERS_ZH]
        if any(_HAN.match(token) for token in run[:WORDS_EN]):
            if len(run) == CHARACTERS_ZH:
                yield tuple(run)
        else:
            yield tuple(run[:WORDS_EN])


def _join(run: tuple[str, ...]) -> str:
    return re.sub("(?<=[\u3400-\u9fff]) (?=[\u3400-\u9fff])", "", " ".join(run))
