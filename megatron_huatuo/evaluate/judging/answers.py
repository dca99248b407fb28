"""Files of answers that are judged: single answers or whole conversations, in the layouts in which they are published."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.record_files import read_records

_QUESTION_KEYS = ("query", "prompt", "question")
_ANSWER_KEYS = ("model_output", "reply", "answer")
_ID_KEYS = ("id", "prompt_id")
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt")
_SPEAKERS = {"zh": ("用户", "助手"), "en": ("User", "Assistant")}
_REFUSAL = re.compile(
    r"抱歉|对不起|无法(?:提供|回答|给出|协助)|不能(?:提供|回答|给出)|作为(?:一个)?(?:AI|人工智能|语言模型)"
    r"|\bI(?:'m| am) (?:sorry|unable|not able)|\bI (?:can(?:not|'t)|won't)|\bas an AI\b",
    re.IGNORECASE,
)
_REFUSAL_WITHIN, _SHORT_ANSWER = 60, 200


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_HasId)


class Answer(NamedTuple):
    """One model's answer, or its part of a conversation.

    turns: (speaker, text) in order, speaker "user" or "assistant"; the last one is the assistant's. label: the kind of
    question, where the file names it.
    """

    id: str
    turns: tuple[tuple[str, str], ...]
    label: str | None

    @property
    def question(self) -> str:
        """The first thing that the user says."""
        return next((text for speaker, text in self.turns if speaker == "user"), "")

    @property
    def text(self) -> str:
        """The last answer."""
        return self.turns[-1][1]

    @property
    def num_answers(self) -> int:
        """Answers of the assistant."""
        return sum(speaker == "assistant" for speaker, _ in self.turns)

    @property
    def length(self) -> int:
        """Characters of all answers."""
        return sum(len(text) for speaker, text in self.turns if speaker == "assistant")

    @property
    def language(self) -> str:
        """zh where the question holds a Chinese character, else en."""
        return "zh" if re.search("[\u3400-\u9fff]", self.question) else "en"

    def transcript(self) -> str:
        """The conversation as text, one speaker after the other."""
        user, assistant = _SPEAKERS[self.language]
        return "\n\n".join(
            f"{user if speaker == 'user' else assistant}：{text.strip()}" for speaker, text in self.turns
        )

    @property
    def is_refusal(self) -> bool:
        """Whether the last answer declines: it begins so, and is short."""
        return len(self.text) < _SHORT_ANSWER and _REFUSAL.search(self.text[:_REFUSAL_WITHIN]) is not None


def read_answers(path: str | os.PathLike[str]) -> dict[str, Answer]:
    """{id: answer} of a `.json` array or JSON Lines.

    A single answer: `id` (or `prompt_id`), the question under `query`, `prompt` or `question`, the answer under
    `model_output`, `reply` or `answer`. A conversation: `model_output` is a list of [question, answer] pairs, or
    `messages` or `conversations` a list of turns, the last one the assistant's; a `model_output` beside `messages` or a
    `prompt` of turns is the answer to them.
    Raises: DataError naming file, line and key; for a repeated id; for an empty file.
    """
    return read_by_id([path], _parse_answer, f"no answers: {path}. Give a file with `id`, `query` and `model_output`.")


def read_by_id(
    paths: Sequence[str | os.PathLike[str]], parse: Callable[[Any, str], list[tuple[T, str]]], none_found: str
) -> dict[str, T]:
    """{id: record} of the files, in order. parse: gives each record with its place. none_found: what to say then.

    Raises: DataError for a repeated id, for files without a record, and what `parse` raises.
    """
    found: dict[str, T] = {}
    for path in paths:
        for record, where in read_records(path, parse):
            if record.id in found:
                raise DataError(f"repeated id: got {record.id!r} twice, need each once ({where}). Remove one.")
            found[record.id] = record
    if not found:
        raise DataError(none_found)
    return found


def _parse_answer(raw: Any, where: str) -> list[tuple[Answer, str]]:
    if not isinstance(raw, dict):
        raise DataError(f"wrong record: got {type(raw).__name__}, need an object ({where})")
    identifier = read_identifier(raw, where)
    turns = _turns(raw, where)
    if turns[-1][0] != "assistant":
        raise DataError(f"nothing to judge: the last turn is the user's, need an answer after it ({where})")
    label = raw.get("label")
    return [(Answer(identifier, turns, label if isinstance(label, str) else None), where)]


def read_identifier(raw: dict[str, Any], where: str) -> str:
    """The id of a record. Raises: DataError when it has none, or one that is neither text nor a whole number."""
    identifier = next((raw[key] for key in _ID_KEYS if raw.get(key) is not None), None)
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
        raise DataError(f"wrong value of 'id': got {type(identifier).__name__}, need text or a whole number ({where})")
    return str(identifier)


def read_question(raw: dict[str, Any], where: str) -> str:
    """The question of a record of one turn. Raises: DataError naming the keys when there is none."""
    return _first_text(raw, _QUESTION_KEYS, where)


def _turns(raw: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    output = next((raw[key] for key in _ANSWER_KEYS if raw.get(key) is not None), None)
    if isinstance(output, list):
        return question_answer_pairs(output, where)
    context = next(
        (raw[key] for key in ("messages", "conversations", "prompt") if isinstance(raw.get(key), list)), None
    )
    if context is not None:
        own = read_turns(context, where)
        return own if not isinstance(output, str) else (*own, ("assistant", output))
    answer = _first_text(raw, _ANSWER_KEYS, where)
    return (("user", _first_text(raw, _QUESTION_KEYS, where)), ("assistant", answer))


def read_turns(items: Sequence[Any], where: str) -> tuple[tuple[str, str], ...]:
    """Turns of `{"role", "content"}` or `{"from", "value"}` objects; a system turn joins the first question."""
    turns: list[tuple[str, str]] = []
    system = ""
    for item in items:
        speaker = item.get("role", item.get("from")) if isinstance(item, dict) else None
        text = item.get("content", item.get("value")) if isinstance(item, dict) else None
        if not isinstance(text, str) or speaker not in (*_USER, *_ASSISTANT, "system"):
            raise DataError(f"wrong turn: got {str(item)[:60]}, need role user, assistant or system and text ({where})")
        if speaker == "system":
            system = f"{text}\n"
        else:
            turns.append(("user", system + text) if speaker in _USER else ("assistant", text))
            system = ""
    if not turns:
        raise DataError(f"no turns: need a question and an answer ({where})")
    return tuple(turns)


def question_answer_pairs(pairs: Sequence[Any], where: str) -> tuple[tuple[str, str], ...]:
    """Turns of [question, answer] pairs."""
    if not pairs or not all(isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs):
        raise DataError(f"wrong value of 'model_output': need text or [question, answer] pairs of text ({where})")
    return tuple(turn for question, answer in pairs for turn in (("user", question), ("assistant", answer)))


def _first_text(raw: dict[str, Any], keys: tuple[str, ...], where: str) -> str:
    for key in keys:
        if isinstance(raw.get(key), str):
            return str(raw[key])
    raise DataError(f"no text under any of {', '.join(keys)}: got keys {sorted(raw)[:8]} ({where})")


def pair_answers(path_a: str | os.PathLike[str], path_b: str | os.PathLike[str]) -> list[tuple[Answer, Answer]]:
    """Answers of two files to the same questions, in the order of the first file.

    Single answers must have the same question; conversations go their own ways, so only their ids must match.
    Raises: DataError when an id is in one file only, or the questions differ.
    """
    answers_a, answers_b = read_answers(path_a), read_answers(path_b)
    if alone := sorted(answers_a.keys() ^ answers_b.keys()):
        raise DataError(
            f"{len(alone)} ids are in one file only: {', '.join(alone[:5])} ({path_a}, {path_b}). "
            "Give two files that answer the same questions."
        )
    for identifier, answer in answers_a.items():
        is_single = answer.num_answers == answers_b[identifier].num_answers == 1
        if is_single and answer.question.strip() != answers_b[identifier].question.strip():
            raise DataError(f"different questions under id {identifier!r} ({path_a}, {path_b}). Give matching files.")
    return [(answer, answers_b[identifier]) for identifier, answer in answers_a.items()]
