"""Texts that lost their content before they came here, or are mostly copies of themselves: to be rejected, not repaired."""

from __future__ import annotations

REPLACEMENT_CHARACTER = "\ufffd"
_PIECE = 8
_MIN_DISTINCT_SHARE = 0.3


def is_repetitive(text: str) -> bool:
    """Whether fewer than 30 % of the text's pieces of 8 characters differ: linear time; short texts are never.

    >>> is_repetitive("高血压要治疗。" * 20), is_repetitive("高血压是慢性病，需要长期治疗，也要改变生活方式。")
    (True, False)
    """
    if len(text) < 12 * _PIECE:
        return False
    number = len(text) - _PIECE + 1
    enough = _MIN_DISTINCT_SHARE * number
    # Ordinary text has enough different pieces in its first half already.
    return all(len({text[start : start + _PIECE] for start in range(end)}) < enough for end in (number // 2, number))
