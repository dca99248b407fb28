"""Finished pairs beside their passages, for a person to read before the big run."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator

from megatron_huatuo.storage.records import Conversation
from megatron_huatuo.unify.input_documents import Task
from megatron_huatuo.unify.writers.writer import Refusal


def side_by_side(task: Task, outcome: Conversation | Refusal | None, width: int | None = None) -> str:
    """The passage on the left, question and answer (or the reason why there are none) on the right.

    width: of the whole, in terminal columns; by default the terminal's.
    """
    columns = width or max(60, shutil.get_terminal_size((120, 40)).columns)
    half = (columns - 3) // 2
    left = list(wrap(task.shown(), half))
    right = list(wrap(_describe(outcome), half))
    height = max(len(left), len(right))
    left, right = left + [""] * (height - len(left)), right + [""] * (height - len(right))
    rows = [f"{row}{' ' * (half - display_width(row))} │ {other}" for row, other in zip(left, right, strict=True)]
    return "\n".join([f"── {task.id} ({task.source}) ".ljust(columns, "─"), *rows])


def _describe(outcome: Conversation | Refusal | None) -> str:
    if outcome is None:
        return "[not asked: the budget is reached]"
    if isinstance(outcome, Conversation):
        return "\n".join(f"<{'问' if turn.speaker == 'human' else '答'}>：{turn.value}" for turn in outcome.turns)
    return f"[rejected: {outcome.reason}]\n{outcome.question or ''}\n{outcome.answer or ''}".strip()


def wrap(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width` terminal columns; breaks at a space, or anywhere in Chinese text and long words."""
    for line in text.split("\n"):
        current, used = "", 0
        for character in line:
            size = display_width(character)
            if used + size > width:
                head, space, tail = current.rpartition(" ")
                if not space or size == 2 or character == " ":
                    head, tail = current, ""
                yield head
                current, used = tail, display_width(tail)
            current, used = current + character, used + size
        yield current


def display_width(text: str) -> int:
    """Columns on a terminal: two for East Asian wide characters, none for combining marks."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
