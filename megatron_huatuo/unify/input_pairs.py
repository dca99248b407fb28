"""Published question-answer and dialogue sets as work: conversations to take over, and queries to answer.

Invariant: a record becomes conversations, a query to be answered, or a counted bad line; nothing is guessed, and what is
left out of a dialogue is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.pairs import Dialogue, check_turns, read_dialogues
from megatron_huatuo.storage.record_files import read_records
from megatron_huatuo.storage.records import Conversation, Turn
from megatron_huatuo.text.language import detect_language
from megatron_huatuo.text.normal_form import normal_form
from megatron_huatuo.unify.input_documents import Query, Task


def read_pairs(path: str, bad_lines: BadLines) -> Iterator[Task]:
    """Tasks of a file in order. A record without a source gets the name of its file, one without an id its place."""
    for line, found in read_records(path, partial(_parse, notes=bad_lines.tolerated), bad_lines):
        name = found.name or f"{Path(path).name}:{line}"
        source = found.source or Path(path).name.split(".")[0]
        turns = tuple(found.turns)
        work: Query | Conversation = Conversation(name, turns, source, found.provenance, found.system)
        if found.asks:
            work = Query(turns[0].value, _language(turns[0].value))
        yield Task(name, source, {"file": path, "line": line}, work)


def _language(text: str) -> str:
    return "en" if detect_language(text) == "en" else "zh"


def _parse(raw: Any, where: str, notes: Counter[str]) -> list[tuple[int, Dialogue]]:
    """(line, dialogue) of what one record holds. Raises DataError naming the place."""
    line = int(where.rpartition(":")[2])
    local: Counter[str] = Counter()
    found = [(line, _clean(one, where, local)) for one in read_dialogues(raw, where, local)]
    notes.update(local)  # of a record that is refused nothing else is told
    return found


def _clean(dialogue: Dialogue, where: str, notes: Counter[str]) -> Dialogue:
    turns = dialogue.turns
    if dialogue.asks:
        if dialogue.system is not None:
            notes["left out: system text of a query"] += 1
    else:
        turns = list(check_turns(_trim(turns, notes), where))
    repairs: Counter[str] = Counter()
    turns = [turn._replace(value=normal_form(turn.value, repairs)) for turn in turns]
    system = None if dialogue.system is None else normal_form(dialogue.system, repairs) or None
    notes.update({f"repaired: {kind}": number for kind, number in repairs.items()})
    if not all(turn.value for turn in turns):
        raise DataError(f"blank turn: need text ({where})")
    return dialogue._replace(turns=turns, system=system)


def _trim(turns: list[Turn], notes: Counter[str]) -> list[Turn]:
    """Chat logs may start with the model or end with the human: those turns teach nothing."""
    start, stop = 0, len(turns)
    while start < stop and turns[start].speaker == "gpt":
        start += 1
    while stop > start and turns[stop - 1].speaker == "human":
        stop -= 1
    for kind, number in (("before the first question", start), ("after the last answer", len(turns) - stop)):
        if number:
            notes[f"left out: turn {kind}"] += number
    return turns[start:stop]
