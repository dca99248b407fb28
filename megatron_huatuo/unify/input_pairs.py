"""Published question-answer and dialogue sets, each in its own layout.

Invariant: a record becomes conversations, a query to be answered, or a counted bad line; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines, read_records
from megatron_huatuo.storage.records import Conversation, Turn, parse_conversations
from megatron_huatuo.text.language import detect_language
from megatron_huatuo.text.normal_form import normal_form
from megatron_huatuo.unify.input_documents import Query, Task

_QUESTION_KEYS = ("question", "query", "prompt")
_ANSWER_KEYS = ("answer", "response", "completion", "output")
_SPEAKERS = {
    "病人": "human", "患者": "human", "patient": "human", "医生": "gpt", "大夫": "gpt", "doctor": "gpt",
}  # fmt: skip
_UTTERANCE = re.compile(r"\s*(病人|患者|医生|大夫|patient|doctor)\s*[:：]\s*(.*)", re.IGNORECASE | re.DOTALL)


class _Found(NamedTuple):
    """Turns of one conversation, or one turn: a query. name: the record's own id, if any."""

    line: int
    name: str | None
    source: str | None
    turns: tuple[Turn, ...]


def read_pairs(path: str, bad_lines: BadLines) -> Iterator[Task]:
    """Tasks of a file in order. A record without a source gets the name of its file, one without an id its place."""
    for found in read_records(path, _parse, bad_lines):
        name = found.name or f"{Path(path).name}:{found.line}"
        source = found.source or Path(path).name.split(".")[0]
        work: Query | Conversation = Conversation(name, found.turns, source)
        if len(found.turns) == 1:
            work = Query(found.turns[0].value, _language(found.turns[0].value))
        yield Task(name, source, {"file": path, "line": found.line}, work)


def _language(text: str) -> str:
    return "en" if detect_language(text) == "en" else "zh"


def _parse(raw: Any, where: str) -> list[_Found]:
    """What one record holds. Raises DataError naming the place."""
    line = int(where.rpartition(":")[2])
    raw = {"dialogue": raw} if isinstance(raw, list) else raw
    turns = _special_layout(raw, where) if isinstance(raw, dict) else None
    if turns is not None:
        name = None if raw.get("id") is None else str(raw["id"])
        source = raw["source"] if isinstance(raw.get("source"), str) else None
        return [_Found(line, name, source, _clean(turns, where))]
    return [
        _Found(line, None if found.id == where else found.id, found.source, _clean(found.turns, where))
        for found in parse_conversations(_trimmed(raw), where)
    ]


def _clean(turns: tuple[Turn, ...], where: str) -> tuple[Turn, ...]:
    cleaned = tuple(Turn(turn.speaker, normal_form(turn.value)) for turn in turns)
    if not all(turn.value for turn in cleaned):
        raise DataError(f"blank turn: need text ({where})")
    return cleaned


def _special_layout(raw: Mapping[str, Any], where: str) -> tuple[Turn, ...] | None:
    """Layouts that the corridor's own records do not have; None for all others."""
    if "questions" in raw and "answers" in raw:
        return _huatuo_26m(raw, where)
    if "utterances" in raw:
        return _med_dialog(raw["utterances"], where)
    if "dialogue" in raw and _starts_with_speaker(raw["dialogue"]):
        return _med_dialog(raw["dialogue"], where)
    question = next((raw[key] for key in _QUESTION_KEYS if isinstance(raw.get(key), str)), None)
    if question is None or "instruction" in raw:
        return None
    answers = [raw[key] for key in _ANSWER_KEYS if key in raw]
    if not answers:
        return (Turn("human", question),)
    if not isinstance(answers[0], str):
        raise DataError(f"wrong answer: got {type(answers[0]).__name__}, need text ({where})")
    return Turn("human", question), Turn("gpt", answers[0])


def _huatuo_26m(raw: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
    """`{"questions": [["q", "same q in other words"…]…], "answers": ["a"…]}`: the first wording of the first question."""
    question, answer = raw["questions"], raw["answers"]
    while isinstance(question, list) and question:
        question = question[0]
    while isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(f"wrong 'questions' or 'answers': need lists of texts ({where})")
    if re.fullmatch(r"https?://\S+", answer.strip()):
        raise DataError(f"answer is a link: the set without texts was given ({where})")
    return Turn("human", question), Turn("gpt", answer)


def _starts_with_speaker(dialogue: Any) -> bool:
    return bool(
        isinstance(dialogue, list) and dialogue and isinstance(dialogue[0], str) and _UTTERANCE.match(dialogue[0])
    )


def _med_dialog(utterances: Any, where: str) -> tuple[Turn, ...]:
    """`["病人：…", "医生：…"…]`: neighbours of one speaker are joined; a dialogue starts with the patient and ends with
    the doctor."""
    if not isinstance(utterances, list):
        raise DataError(f"wrong 'utterances': got {type(utterances).__name__}, need a list ({where})")
    turns: list[Turn] = []
    for utterance in utterances:
        match = _UTTERANCE.match(utterance) if isinstance(utterance, str) else None
        if match is None:
            raise DataError(f"utterance without speaker: need 病人：, 医生：, patient: or doctor: ({where})")
        speaker = _SPEAKERS[match[1].lower()]
        if turns and turns[-1].speaker == speaker:
            turns[-1] = Turn(speaker, f"{turns[-1].value}\n{match[2].strip()}")
        else:
            turns.append(Turn(speaker, match[2].strip()))
    trimmed = tuple(_trim(turns, [turn.speaker for turn in turns], ("human",), ("gpt",)))
    if len(trimmed) < 2:
        raise DataError(f"dialogue without question and answer ({where})")
    return trimmed


def _trimmed(raw: Any) -> Any:
    """ShareGPT and chat logs may start with the model or end with the human: those turns teach nothing."""
    for turns_key, speaker_key in (("conversations", "from"), ("messages", "role")):
        if isinstance(raw, dict) and isinstance(turns := raw.get(turns_key), list):
            if not all(isinstance(turn, dict) for turn in turns):
                return raw
            turns = [_flat(turn) for turn in turns]
            speakers = [turn.get(speaker_key) for turn in turns]
            return {**raw, turns_key: _trim(turns, speakers, ("human", "user", "system"), ("gpt", "assistant"))}
    return raw


def _trim(turns: list[Any], speakers: list[Any], first: tuple[str, ...], last: tuple[str, ...]) -> list[Any]:
    start, stop = 0, len(turns)
    while start < stop and speakers[start] not in first:
        start += 1
    while stop > start and speakers[stop - 1] not in last:
        stop -= 1
    return turns[start:stop]


def _flat(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenAI messages may hold a list of parts instead of text."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(texts) != len(parts):
        return message
    return {**message, "content": "\n".join(texts)}
