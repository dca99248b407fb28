"""Published layouts of pairs and dialogues, read to conversations.

Invariant: a record becomes conversations, or an error that names key and place. Each of its keys is read, carries nothing,
or is counted in `notes`; one that would change what is taught (tools, pictures, answers to choose from) is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megatron_huatuo.errors import BlankTextError, DataError
from megatron_huatuo.storage.jsonl import strict_decoder
from megatron_huatuo.storage.records import (
    Conversation,
    Turn,
    as_object,
    carries_nothing,
    note_unread,
    optional_object,
    optional_text,
    record_id,
    required_text,
)

_HUMAN = ("human", "user", "patient", "病人", "患者", "问")
_MODEL = ("gpt", "assistant", "doctor", "医生", "大夫", "答")
_SPEAKERS = {
    **dict.fromkeys(_HUMAN, "human"),
    **dict.fromkeys(_MODEL, "gpt"),
    "system": "system",
    "developer": "system",
}
_MARK = re.compile(r"\s*(病人|患者|问|医生|大夫|答|patient|doctor)\s*[:：]\s*(.*)", re.IGNORECASE | re.DOTALL)

_TURN_KEYS = frozenset(("from", "value", "role", "content"))
_FLAGS = ("weight", "loss", "train", "training")
_TURN_LISTS = ("conversations", "messages", "conversation")
_TEXT_LISTS = ("dialogue", "utterances", "data")
_QUESTIONS = ("question", "query", "prompt", "ask", "Question")
_ANSWERS = ("answer", "response", "completion", "output", "Answer", "Response")
# Beside a question without an answer under these names: asking for one again would be paid for, and drop what is there.
_LIKE_ANSWER = re.compile(
    r"(?:answer|response|reply|output|completion|target|回答|答案|回复)s?(?!\w*(?:type|id|time|date|count|score|length)$)",
    re.IGNORECASE,
)
_COMMON = frozenset(("id", "_id", "source", "provenance", "system", "system_prompt", "kto_tag"))
_REFUSED = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), "tools"),
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), "pictures and sounds"),
    **dict.fromkeys(("chosen", "rejected", "response_chosen", "response_rejected"), "answers to choose from"),
    **dict.fromkeys(("option", "options", "choices"), "options of an exam question"),
}


class Dialogue(NamedTuple):
    """What one record says; its turns are not checked yet. name: the record's own id; asks: a question that has no answer."""

    name: str | None
    source: str | None
    system: str | None
    turns: list[Turn]
    provenance: Mapping[str, Any] | None = None
    asks: bool = False


def parse_conversations(raw: Any, where: str, notes: Counter[str] | None = None) -> list[Conversation]:
    """Conversations of one JSON value, in any layout of `read_dialogues`. A record without id gets its place as id.

    notes: see there. Raises: DataError naming key and place; BlankTextError for a turn without text.
    """
    local: Counter[str] = Counter()
    dialogues = read_dialogues(raw, where, local)
    conversations = []
    for index, one in enumerate(dialogues):
        place = f"{where}, {one.name}" if len(dialogues) > 1 else where
        name = one.name or (f"{where}-{index}" if len(dialogues) > 1 else where)
        conversations.append(Conversation(name, check_turns(one.turns, place), one.source, one.provenance, one.system))
    if notes is not None and local:  # of a record that is refused nothing else is told
        notes.update(local)
    return conversations


def check_turns(turns: Sequence[Turn], where: str) -> tuple[Turn, ...]:
    """Turns that are pairs of a question and an answer, none of them blank. Raises: DataError, BlankTextError."""
    for index, turn in enumerate(turns):
        expected = "gpt" if index % 2 else "human"
        if turn.speaker != expected:
            raise DataError(f"wrong speaker in turn {index}: got {turn.speaker!r}, need {expected!r} ({where})")
    if len(turns) < 2 or len(turns) % 2:
        raise DataError(f"wrong number of turns: got {len(turns)}, need question-answer pairs ({where})")
    for index, turn in enumerate(turns):
        if not turn.value.strip():
            raise BlankTextError(f"blank 'value' in turn {index}: need text ({where})")
    return tuple(turns)


def read_dialogues(raw: Any, where: str, notes: Counter[str]) -> list[Dialogue]:
    """What one JSON value holds, in any of these layouts:

    * `{"conversations" | "messages" | "conversation": [{"from" | "role", "value" | "content"}…]}` (HuatuoGPT-II, ShareGPT,
      OpenAI, DISC-Med-SFT); an answer with `weight`, `loss`, `train` or `training` of 0 is context and not trained on
    * `{"instruction", "input"?, "output", "history"?}` (Alpaca, CMtMedQA), `{"question" | "query" | "prompt" | "ask",
      "answer" | "response" | "completion" | "output"?, "history"?}` (ChatMed, …); without an answer it is one turn
    * `[q, a, …]`, `{"dialogue" | "data" | "utterances": [q, a, …]}`, texts perhaps marked 病人：/医生：, 问：/答： or
      patient:/doctor: (MedDialog, HuatuoGPT); marked neighbours of one speaker are joined
    * `{"questions": [[q, …]…], "answers": [a, …]}` (Huatuo-26M)
    * `{source: [[q, a, …]…]}`, which may hold many

    with `system` (or `system_prompt`) text beside them, and `kto_tag`: false for a bad answer.
    notes: counts what is left out, and keys that are not read, by name.
    Raises: DataError naming key and place.
    """
    if isinstance(raw, list):
        return [Dialogue(None, None, None, _turns_of_texts(raw, where))]
    record = as_object(raw, where)
    if not _REFUSED.keys().isdisjoint(record):
        _refuse(record, where)
    found = _read_turns(record, where, notes)
    if found is None:
        return _read_grouped(record, where)
    turns, read = found
    system = _system_text(record, turns, where)
    asks = len(turns) == 1 and read[0] in _QUESTIONS
    if turns and turns[0].speaker == "system":
        turns = turns[1:]
    if record.get("label") is False or not _is_good(record, where):
        turns = [turn._replace(trained=turn.speaker == "human") for turn in turns]
        read = (*read, "label")
    if not record.keys() <= {*read, "id"}:
        if "history" not in read and not _says_nothing(record.get("history")):
            raise DataError(f"earlier turns cannot be kept: got 'history' beside {read[0]!r} ({where}). Join them.")
        note_unread(record, {*_COMMON, *_REFUSED, *read}, notes)
    name = record.get("id", record["_id"] if isinstance(record.get("_id"), (str, int)) else None)
    name = None if name is None else record_id({"id": name}, None, where)
    source, provenance = optional_text(record, "source", where), optional_object(record, "provenance", where)
    return [Dialogue(name, source, system, turns, provenance, asks)]


def _is_good(record: Mapping[str, Any], where: str) -> bool:
    """What `kto_tag` says of the answer; a table holds it as text or number. Raises: DataError for anything else."""
    tag = record.get("kto_tag")
    if tag is None or tag == "":
        return True
    if str(tag).lower() not in ("true", "false", "1", "0"):
        raise DataError(f"wrong value of 'kto_tag': got {tag!r}, need true or false ({where})")
    return str(tag).lower() in ("true", "1")


def _read_turns(
    record: Mapping[str, Any], where: str, notes: Counter[str]
) -> tuple[list[Turn], tuple[str, ...]] | None:
    """The turns of a record and the keys that they were read from; None for a record of groups."""
    for key in _TURN_LISTS:
        if key in record:
            return _turns_of_messages(record[key], key, where, notes), (key,)
    if "instruction" in record or ("input" in record and "output" in record):
        return _turns_of_instruction(record, where, notes)
    for key in _TEXT_LISTS:
        if key in record and isinstance(texts := record[key], list) and not any(isinstance(one, list) for one in texts):
            if texts and isinstance(texts[0], dict):
                return _turns_of_messages(texts, key, where, notes), (key,)
            return _turns_of_texts(texts, where, must_be_marked=key == "utterances"), (key,)
    if "questions" in record and "answers" in record:
        return _turns_of_huatuo_26m(record, where, notes), ("questions", "answers")
    question = next((key for key in _QUESTIONS if isinstance(record.get(key), str)), None)
    if question is not None:
        return _turns_of_question(record, question, where, notes)
    if record and all(isinstance(value, list) for value in record.values()):
        return None
    raise DataError(
        "unknown layout: need 'conversations', 'messages', 'instruction'/'output', 'question'/'answer' or "
        f"{{source: [[q, a…]…]}}, got keys {sorted(map(str, record))[:6]} ({where})"
    )


def _refuse(record: Mapping[str, Any], where: str, place: str = "") -> None:
    for key in record.keys() & _REFUSED.keys():
        if not _says_nothing(record[key]):
            raise DataError(f"{_REFUSED[key]} cannot be kept: got {place}{key!r} ({where}). Take such records out.")


def _says_nothing(value: Any) -> bool:
    """Of a refused key: empty, or empty JSON as text."""
    return carries_nothing(value) or (isinstance(value, str) and value.strip() in ("[]", "{}", "null"))


def _system_text(record: Mapping[str, Any], turns: list[Turn], where: str) -> str | None:
    """The text of the system, from a key beside the turns or from a first turn."""
    beside = optional_text(record, "system", where) or optional_text(record, "system_prompt", where)
    first = turns[0].value if turns and turns[0].speaker == "system" else None
    beside, first = ((text if text and text.strip() else None) for text in (beside, first))
    if beside and first and beside != first:
        raise DataError(f"two system texts: got 'system' and a first turn of the system ({where}). Keep one.")
    return first or beside


def _turns_of_messages(items: Any, key: str, where: str, notes: Counter[str]) -> list[Turn]:
    if not isinstance(items, list):
        raise DataError(f"wrong value of the turns: got {type(items).__name__}, need a list ({where})")
    turns = []
    for item in items:
        record = as_object(item, where)
        if record.keys().isdisjoint(("from", "role")):
            keys = sorted(map(str, record))[:6]
            raise DataError(
                f"turn without a speaker: got keys {keys}, need 'from' and 'value', or 'role' and 'content' ({where})"
            )
        name = required_text(record, "role" if "role" in record and "from" not in record else "from", where)
        speaker = _SPEAKERS.get(name) or _SPEAKERS.get(name.lower())
        if speaker is None:
            raise DataError(f"unknown speaker: got {name!r}, need one of {sorted(_SPEAKERS)} ({where})")
        trained = True
        if not record.keys() <= _TURN_KEYS:
            trained = _flag(record, where) or speaker != "gpt"
            _refuse(record, where, f"{key}[].")
            note_unread(record, {*_TURN_KEYS, *_FLAGS, *_REFUSED}, notes, f"{key}[].")
        turns.append(Turn(speaker, _message_text(record, where), trained))
    return turns


def _flag(record: Mapping[str, Any], where: str) -> bool:
    """Whether a turn is trained on, by whatever flag it has."""
    flag = True
    for key in _FLAGS:
        value = record.get(key)
        if value is not None and (isinstance(value, str) or value not in (0, 1)):
            raise DataError(f"wrong value of {key!r}: got {value!r}, need 0 or 1, true or false ({where})")
        flag = flag and (value is None or bool(value))
    return flag


def _message_text(record: Mapping[str, Any], where: str) -> str:
    """The text of a turn; OpenAI's may be a list of parts of text."""
    key = "value" if "value" in record or "content" not in record else "content"
    parts = record.get(key)
    if isinstance(parts, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return "\n".join(part["text"] for part in parts)
    return required_text(record, key, where)


def _turns_of_instruction(
    record: Mapping[str, Any], where: str, notes: Counter[str]
) -> tuple[list[Turn], tuple[str, ...]]:
    """Alpaca, with an input behind the instruction or in place of a blank one; Dolly's names are `context`, `response`."""
    more = "input" if "input" in record or "context" not in record else "context"
    answer = "output" if "output" in record or "response" not in record else "response"
    parts = (optional_text(record, "instruction", where), optional_text(record, more, where))
    question = "\n".join(part for part in parts if part and part.strip())
    if not question:
        raise BlankTextError(f"blank 'instruction': need text ({where})")
    pair = _unmarked([question, required_text(record, answer, where)])
    return [*_history(record, where, notes), *pair], ("instruction", more, answer, "history")


def _turns_of_question(
    record: Mapping[str, Any], question: str, where: str, notes: Counter[str]
) -> tuple[list[Turn], tuple[str, ...]]:
    answer = next((key for key in _ANSWERS if key in record), None)
    history = _history(record, where, notes)
    if answer is None:
        if others := [
            key for key in record if _LIKE_ANSWER.search(key) and isinstance(record[key], str | list) and record[key]
        ]:
            raise DataError(
                f"answer under an unknown key: got {others[0]!r}, need one of {list(_ANSWERS)} ({where}). Rename it."
            )
        return [*history, Turn("human", record[question])], (question, "history")
    if not isinstance(record[answer], str):
        raise DataError(f"wrong answer: got {type(record[answer]).__name__} under {answer!r}, need text ({where})")
    return [*history, *_unmarked([record[question], record[answer]])], (question, answer, "history")


def _history(record: Mapping[str, Any], where: str, notes: Counter[str]) -> list[Turn]:
    """Earlier turns: [[q, a]…], or turns with speakers; tables hold them as JSON text."""
    history = record.get("history")
    if _says_nothing(history):
        return []
    if isinstance(history, str):
        history = _decode_list(history, where)
    if isinstance(history, list) and all(isinstance(item, dict) for item in history):
        return _turns_of_messages(history, "history", where, notes)
    if not isinstance(history, list) or not all(isinstance(item, list) and len(item) == 2 for item in history):
        raise DataError(
            f"wrong value of 'history': got {type(history).__name__}, need a list of [question, answer] ({where})"
        )
    return _turns_of_texts([text for item in history for text in item], where)


def _decode_list(text: str, where: str) -> Any:
    try:
        return strict_decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"wrong value of 'history': got text that is not JSON: {error} ({where})") from error


def _turns_of_texts(texts: Any, where: str, *, must_be_marked: bool = False) -> list[Turn]:
    """Texts of human and model in turn, or, where all of them are marked, of whom the marks say."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"wrong dialogue: got {type(texts).__name__}, need a list of texts ({where})")
    marks = [_MARK.match(text) for text in texts]
    if not all(marks) or not marks:
        if must_be_marked:
            raise DataError(f"utterance without speaker: need 病人：, 医生：, patient: or doctor: ({where})")
        return [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(texts)]
    turns: list[Turn] = []
    for mark in marks:
        assert mark is not None
        speaker, text = _SPEAKERS[mark[1].lower()], mark[2].strip()
        if turns and turns[-1].speaker == speaker:
            turns[-1] = Turn(speaker, f"{turns[-1].value}\n{text}")
        else:
            turns.append(Turn(speaker, text))
    return turns


def _unmarked(pair: list[str]) -> list[Turn]:
    """A question and its answer, without 问： and 答： where both have it."""
    marks = [_MARK.match(text) for text in pair]
    if all(mark and mark[1] == sign for mark, sign in zip(marks, "问答", strict=True)):
        pair = [mark[2] for mark in marks if mark]
    return [Turn("human", pair[0]), Turn("gpt", pair[1])]


def _turns_of_huatuo_26m(record: Mapping[str, Any], where: str, notes: Counter[str]) -> list[Turn]:
    """The first wording of the first question, and the first answer; the others are counted."""
    questions, answers = (_flat_texts(record[key], key, where) for key in ("questions", "answers"))
    if re.fullmatch(r"https?://\S+", answers[0].strip()):
        raise DataError(f"answer is a link: the set without texts was given ({where})")
    for kind, others in (("other wording of a question", questions[1:]), ("other answer", answers[1:])):
        if others:
            notes[f"left out: {kind}"] += len(others)
    return [Turn("human", questions[0]), Turn("gpt", answers[0])]


def _flat_texts(value: Any, key: str, where: str) -> list[str]:
    items = value if isinstance(value, list) else [value]
    texts = [text for item in items for text in (item if isinstance(item, list) else [item])]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"wrong 'questions' or 'answers': need lists of texts, got {key!r} ({where})")
    return texts


def _read_grouped(record: Mapping[str, Any], where: str) -> list[Dialogue]:
    return [
        Dialogue(f"{source}-{index}", source, None, _turns_of_texts(texts, f"{where}, {source}[{index}]"))
        for source, dialogues in record.items()
        for index, texts in enumerate(dialogues)
    ]
