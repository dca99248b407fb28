"""The three records of the corridor: documents, conversations and exam questions, in every layout that is accepted.

Invariant: a record that parses is usable as it is: keys present, types right, text not blank, turns alternating.
Errors name the key and the place; the caller decides whether a bad record stops the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron_huatuo.errors import DataError

LANGUAGES = ("zh", "en")
DOCUMENT_KEYS = frozenset(("id", "source", "language", "title", "text", "metadata"))
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    id: str
    source: str
    language: str
    text: str
    title: str | None = None
    metadata: Mapping[str, Any] | None = None

    def to_record(self) -> dict[str, Any]:
        """The JSON object of this document, absent keys left out."""
        record: dict[str, Any] = {"id": self.id, "source": self.source, "language": self.language}
        if self.title is not None:
            record["title"] = self.title
        record["text"] = self.text
        if self.metadata is not None:
            record["metadata"] = dict(self.metadata)
        return record


class Turn(NamedTuple):
    """One utterance: `speaker` is "human" or "gpt". trained: whether an answer is learnt; True for what the human says."""

    speaker: str
    value: str
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """Alternating turns, the first by the human, the last by the model. system: what the model was told before."""

    id: str
    turns: tuple[Turn, ...]
    source: str | None = None
    provenance: Mapping[str, Any] | None = None
    system: str | None = None

    def opened_turns(self) -> tuple[Turn, ...]:
        """The turns of a format that has no place for a system text, which opens the first question."""
        if self.system is None:
            return self.turns
        return (self.turns[0]._replace(value=f"{self.system}\n{self.turns[0].value}"), *self.turns[1:])

    def to_record(self) -> dict[str, Any]:
        """The JSON object in the layout of the published HuatuoGPT-II instruction sets."""
        record: dict[str, Any] = {"id": self.id}
        if self.source is not None:
            record["source"] = self.source
        if self.system is not None:
            record["system"] = self.system
        record["conversations"] = [_turn_record(turn) for turn in self.turns]
        if self.provenance is not None:
            record["provenance"] = dict(self.provenance)
        return record


def _turn_record(turn: Turn) -> dict[str, Any]:
    record: dict[str, Any] = {"from": turn.speaker, "value": turn.value}
    return record if turn.trained else {**record, "weight": 0}


@dataclass(frozen=True)
class Question:
    """One multiple-choice question. `answer`: the right letters in alphabetical order ("B", "ABD")."""

    id: str
    question: str
    option: Mapping[str, str]
    answer: str
    question_type: str | None = None
    source: str | None = None


def required_text(record: Mapping[str, Any], key: str, where: str) -> str:
    """The text under a key; blank passes. Raises: DataError naming key and place."""
    value = record.get(key)
    if not isinstance(value, str):
        got = "nothing" if key not in record else type(value).__name__
        raise DataError(f"wrong value of {key!r}: got {got}, need text ({where})")
    return value


def optional_text(record: Mapping[str, Any], key: str, where: str) -> str | None:
    """The text under a key, None for null and nothing. Raises: DataError for anything else."""
    return None if record.get(key) is None else required_text(record, key, where)


def filled_text(record: Mapping[str, Any], key: str, where: str) -> str:
    """The text under a key, which must not be blank. Raises: DataError naming key and place."""
    value = required_text(record, key, where)
    if not value.strip():
        raise DataError(f"blank {key!r}: need text ({where})")
    return value


def record_id(record: Mapping[str, Any], default: str | None, where: str) -> str:
    """The id of a record, a text or a whole number, as text. Raises: DataError for anything else."""
    value = default if record.get("id") is None else record["id"]
    if value is None:
        raise DataError(f"wrong value of 'id': got nothing, need text or a whole number ({where})")
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"wrong value of 'id': got {type(value).__name__}, need text or a whole number ({where})")
    return str(value)


def optional_object(record: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any] | None:
    """The object under a key, None for null and nothing. Raises: DataError for anything else."""
    value = record.get(key)
    if value is not None and not isinstance(value, dict):
        raise DataError(f"wrong value of {key!r}: got {type(value).__name__}, need an object ({where})")
    return value


def as_object(raw: Any, where: str) -> Mapping[str, Any]:
    """A record as an object. Raises: DataError for anything else."""
    if not isinstance(raw, dict):
        raise DataError(f"wrong record: got {type(raw).__name__}, need an object ({where})")
    return raw


def carries_nothing(value: Any) -> bool:
    """Whether a value is null, or an empty or blank text, list or object."""
    return value in _EMPTY or (isinstance(value, str) and not value.strip())


def note_unread(record: Mapping[str, Any], read: Collection[str], notes: Counter[str], place: str = "") -> None:
    """Count the keys of a record that nobody reads though they carry something, as "key not read: KEY".

    place: goes before the key's name, for objects inside a record.
    """
    for key, value in record.items():
        if key not in read and not carries_nothing(value):
            notes[f"key not read: {place}{key}"] += 1


def parse_document(raw: Any, where: str, notes: Counter[str] | None = None) -> Document:
    """Check one Document record. Blank text passes: dropping it is a counted decision of the corpus stage.

    notes: counts keys that are not read, by name. Raises: DataError naming key and place.
    """
    record = as_object(raw, where)
    if notes is not None:
        note_unread(record, DOCUMENT_KEYS, notes)
    language = required_text(record, "language", where)
    if language not in LANGUAGES:
        raise DataError(f"wrong value of 'language': got {language!r}, need one of {LANGUAGES} ({where})")
    return Document(
        id=record_id(record, None, where),
        source=filled_text(record, "source", where),
        language=language,
        text=required_text(record, "text", where),
        title=optional_text(record, "title", where),
        metadata=optional_object(record, "metadata", where),
    )


def parse_questions(raw: Any, where: str) -> list[Question]:
    """Exam questions of one JSON object: a question, or `{exam name: [question…]}`.

    Raises: DataError naming key and place.
    """
    record = as_object(raw, where)
    if "question" not in record and record and all(isinstance(value, list) for value in record.values()):
        return [
            _parse_question(item, f"{where}, {name}[{index}]", name, f"{name}-{index}")
            for name, items in record.items()
            for index, item in enumerate(items)
        ]
    return [_parse_question(record, where, None, where)]


def _parse_question(raw: Any, where: str, exam: str | None, default_id: str) -> Question:
    record = as_object(raw, where)
    option = record.get("option")
    if not isinstance(option, dict) or len(option) < 2:
        got = (
            type(option).__name__
            if "option" in record
            else f"nothing under it, but keys {sorted(map(str, record))[:9]}"
        )
        raise DataError(f"wrong value of 'option': got {got}, need an object of at least two options ({where})")
    for letter, text in option.items():
        if len(letter) != 1 or not "A" <= letter <= "Z" or not isinstance(text, str):
            raise DataError(f"wrong option {letter!r}: need one capital letter and text ({where})")
    answer = filled_text(record, "answer", where).strip()
    if answer != "".join(sorted(set(answer))) or any(letter not in option for letter in answer):
        letters = "".join(option)
        raise DataError(
            f"wrong value of 'answer': got {answer!r}, need letters of {letters} in alphabetical order ({where})"
        )
    return Question(
        id=record_id(record, default_id, where),
        question=filled_text(record, "question", where),
        option=dict(option),
        answer=answer,
        question_type=optional_text(record, "question_type", where),
        source=optional_text(record, "source", where) or exam,
    )
