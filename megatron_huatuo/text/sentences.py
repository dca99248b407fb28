"""Sentences and clauses of Chinese and English text.

Invariant: the pieces joined give the text back, character for character.
"""

from __future__ import annotations

import re

# A Chinese sentence ends at its mark plus closing quotes. An English one ends at ., ! or ? before white space, unless
# the full stop belongs to an abbreviation or an initial ("Dr. ", "e.g. ", "J. ").
_SENTENCE_END = re.compile(
    r"""
    [。！？!?；;]+["'”’」』）)\]]*\s*
    | (?<!\s[A-Z])(?<!^[A-Z])(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\bFig)(?<!\bal)(?<!\bapprox)
      \.+["'”’)\]]*(?:\s+|$)
    | \n+
    """,
    re.VERBOSE,
)
_CLAUSE_END = re.compile(r"[，、：,:]\s*|\s+")


def split_sentences(text: str) -> list[str]:
    """Sentences with their marks and the white space after them.

    >>> split_sentences("血压高。要治疗！Dr. Li agrees. Yes.")
    ['血压高。', '要治疗！', 'Dr. Li agrees. ', 'Yes.']
    """
    return _split_after(_SENTENCE_END, text)


def split_clauses(text: str) -> list[str]:
    """Clauses of one sentence: pieces that end at a comma, a colon or white space."""
    return _split_after(_CLAUSE_END, text)


def first_sentence(text: str) -> str:
    """The first sentence without white space around it; "" for blank text."""
    stripped = text.strip()
    match = _SENTENCE_END.search(stripped)
    return stripped[: match.end()].strip() if match else stripped


def _split_after(pattern: re.Pattern[str], text: str) -> list[str]:
    pieces, start = [], 0
    for match in pattern.finditer(text):
        if match.end() > start:
            pieces.append(text[start : match.end()])
            start = match.end()
    if start < len(text):
        pieces.append(text[start:])
    return pieces
