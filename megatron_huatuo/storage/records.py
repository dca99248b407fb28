"""The three records of the corridor: documents, conversations and exam questions, in every layout that is accepted.

Invariant: a record that parses is usable as it is: keys present, types right, text not blank, turns alternating.
Errors name the key and the place; the caller decides whether a bad record stops the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron_huatuo.errors import BlankTextError, DataError

LANGUAGES = ("zh", "en")


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
    """One utterance: `speaker` is "human" or "gpt"."""

    speaker: str
    value: str


@dataclass(frozen=True)
class Conversation:
    """Alternating turns, the first by the human, the last by the model."""

    id: str
    turns: tuple[Turn, ...]
    source: str | None = None
    provenance: Mapping[str, Any] | None = None

    def to_record(self) -> dict[str, Any]:
        """The JSON object in the layout of the published HuatuoGPT-II instruction sets."""
        record: dict[str, Any] = {"id": self.id}
        if self.source is not None:
            record["source"] = self.source
        record["conversations"] = [{"from": turn.speaker, "value": turn.value} for turn in self.turns]
        if self.provenance is not None:
            record["provenance"] = dict(self.provenance)
        return record


@dataclass(frozen=True)
class Question:
    """One multiple-choice question. `answer`: the right letters in alphabetical order ("B", "ABD")."""

    id: str
    question: str
    option: Mapping[str, str]
    answer: str
    question_type: str | None = None
    source: str | None = None


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        got = "nothing" if key not in record else type(value).__name__
        raise DataError(f"wrong value of {key!r}: got {got}, need text ({where})")
    return value


def _optional_text(record: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if record.get(key) is None else _text(record, key, where)


def _filled_text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = _text(record, key, where)
    if not value.strip():
        raise DataError(f"blank {key!r}: need text ({where})")
    return value


def _identifier(record: Mapping[str, Any], default: str | None, where: str) -> str:
    value = default if record.get("id") is None else record["id"]
    if value is None:
        raise DataError(f"wrong value of 'id': got nothing, need text or a whole number ({where})")
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"wrong value of 'id': got {type(value).__name__}, need text or a whole number ({where})")
    return str(value)


def _optional_mapping(record: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any] | None:
    value = record.get(key)
    if value is not None and not isinstance(value, dict):
        raise DataError(f"wrong value of {key!r}: got {type(value).__name__}, need an object ({where})")
    return value


def _as_object(raw: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise DataError(f"wrong record: got {type(raw).__name__}, need an object ({where})")
    return raw


def parse_document(raw: Any, where: str) -> Document:
    """Check one Document record. Blank text passes: dropping it is a counted decision of the corpus stage.

    Raises: DataError naming key and place.
    """
    record = _as_object(raw, where)
    language = _text(record, "language", where)
    if language not in LANGUAGES:
        raise DataError(f"wrong value of 'language': got {language!r}, need one of {LANGUAGES} ({where})")
    return Document(
        id=_identifier(record, None, where),
        source=_filled_text(record, "source", where),
        language=language,
        text=_text(record, "text", where),
        title=_optional_text(record, "title", where),
        metadata=_optional_mapping(record, "metadata", where),
    )


_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


def _check_turns(turns: list[Turn], where: str) -> tuple[Turn, ...]:
    """Alternation and content. A system message has no place in the recipe's format and opens the first question."""
    if len(turns) > 1 and turns[0].speaker == "system" and turns[1].speaker == "human":
        turns = [Turn("human", f"{turns[0].value}\n{turns[1].value}"), *turns[2:]]
    if len(turns) < 2 or len(turns) % 2:
        raise DataError(f"wrong number of turns: got {len(turns)}, need question-answer pairs ({where})")
    for index, turn in enumerate(turns):
        expected = "gpt" if index % 2 else "human"
        if turn.speaker != expected:
            raise DataError(f"wrong speaker in turn {index}: got {turn.speaker!r}, need {expected!r} ({where})")
        if not turn.value.strip():
            raise BlankTextError(f"blank 'value' in turn {index}: need text ({where})")
    return tuple(turns)


def _turns_from(items: Any, speaker_key: str, value_key: str, where: str) -> list[Turn]:
    if not isinstance(items, list):
        raise DataError(f"wrong value of the turns: got {type(items).__name__}, need a list ({where})")
    turns = []
    for item in items:
        record = _as_object(item, where)
        name = _text(record, speaker_key, where)
        if name not in _SPEAKERS:
            raise DataError(f"unknown speaker: got {name!r}, need one of {sorted(_SPEAKERS)} ({where})")
        turns.append(Turn(_SPEAKERS[name], _text(record, value_key, where)))
    return turns


def _turns_from_texts(texts: Any, where: str) -> list[Turn]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"wrong dialogue: got {type(texts).__name__}, need a list of texts ({where})")
    return [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(texts)]


def parse_conversations(raw: Any, where: str) -> list[Conversation]:
    """Conversations of one JSON object, in any of the accepted layouts.

    * `{"conversations": [{"from", "value"}…]}` (HuatuoGPT-II, ShareGPT) and `{"messages": [{"role", "content"}…]}`
    * `{"instruction", "input"?, "output"}` (Alpaca)
    * `{source: [[q, a, q, a…]…]}`, which may hold many conversations
    * a bare list `[q, a, …]`, and `{"dialogue": [q, a, …]}` with an optional id and source

    A record without id gets its place as id. Raises: DataError naming key and place.
    """
    if isinstance(raw, list):
        return [Conversation(where, _check_turns(_turns_from_texts(raw, where), where))]
    record = _as_object(raw, where)
    if "conversations" in record:
        turns = _turns_from(record["conversations"], "from", "value", where)
    elif "messages" in record:
        turns = _turns_from(record["messages"], "role", "content", where)
    elif "dialogue" in record:
        turns = _turns_from_texts(record["dialogue"], where)
    elif "instruction" in record:
        question = _text(record, "instruction", where)
        if not question.strip():
            raise BlankTextError(f"blank 'instruction': need text ({where})")
        context = _optional_text(record, "input", where) or ""
        turns = [Turn("human", f"{question}\n{context}" if context.strip() else question)]
        turns.append(Turn("gpt", _text(record, "output", where)))
    elif record and all(isinstance(value, list) for value in record.values()):
        return _parse_grouped(record, where)
    else:
        raise DataError(
            "unknown layout: need 'conversations', 'messages', 'instruction'/'output', or {source: [[q, a…]…]}, "
            f"got keys {sorted(record)[:6]} ({where})"
        )
    return [
        Conversation(
            id=_identifier(record, where, where),
            turns=_check_turns(turns, where),
            source=_optional_text(record, "source", where),
            provenance=_optional_mapping(record, "provenance", where),
        )
    ]


def _parse_grouped(record: Mapping[str, Any], where: str) -> list[Conversation]:
    return [
        Conversation(
            id=f"{source}-{index}",
            turns=_check_turns(_turns_from_texts(texts, f"{where}, {source}[{index}]"), f"{where}, {source}[{index}]"),
            source=source,
        )
        for source, dialogues in record.items()
        for index, texts in enumerate(dialogues)
    ]


def parse_questions(raw: Any, where: str) -> list[Question]:
    """Exam questions of one JSON object: a question, or `{exam name: [question…]}`.

    Raises: DataError naming key and place.
    """
    record = _as_object(raw, where)
    if "question" not in record and record and all(isinstance(value, list) for value in record.values()):
        return [
            _parse_question(item, f"{where}, {name}[{index}]", name, f"{name}-{index}")
            for name, items in record.items()
            for index, item in enumerate(items)
        ]
    return [_parse_question(record, where, None, where)]


def _parse_question(raw: Any, where: str, exam: str | None, default_id: str) -> Question:
    record = _as_object(raw, where)
    option = record.get("option")
    if not isinstance(option, dict) or len(option) < 2:
        raise DataError(f"wrong value of 'option': need an object of at least two options ({where})")
    for letter, text in option.items():
        if len(letter) != 1 or not "A" <= letter <= "Z" or not isinstance(text, str):
            raise DataError(f"wrong option {letter!r}: need one capital letter and text ({where})")
    answer = _filled_text(record, "answer", where).strip()
    if answer != "".join(sorted(set(answer))) or any(letter not in option for letter in answer):
        letters = "".join(option)
        raise DataError(
            f"wrong value of 'answer': got {answer!r}, need letters of {letters} in alphabetical order ({where})"
        )
    return Question(
        id=_identifier(record, default_id, where),
        question=_filled_text(record, "question", where),
        option=dict(option),
        answer=answer,
        question_type=_optional_text(record, "question_type", where),
        source=_optional_text(record, "source", where) or exam,
    )
