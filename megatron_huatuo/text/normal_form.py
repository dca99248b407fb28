"""The normal form of a text: what is repaired, what is removed, and how each is counted.

Invariant: `normal_form` is idempotent, takes linear time, and never changes a visible Chinese or Latin letter, digit or
sentence mark except to its canonical form. What cannot be repaired without guessing (U+FFFD, the trace of text that was
lost before it came here) is left in place for the caller to reject.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufff9-\ufffb]+")
_ZERO_WIDTH = re.compile("[\u00ad\u180e\u200b-\u200d\u2060-\u2064\ufeff]+")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f]+")
_PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]+")
_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029]")
# Everything but a single plain space, which is by far the commonest and stays as it is.
_SPACES = re.compile(
    " *[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000][ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]*|  +"
)
_SPACE_AT_LINE_END = re.compile(" ?\n ?")
_BLANK_LINES = re.compile("\n{3,}")

# Full-width letters, digits and signs of measurement become ASCII; Chinese sentence marks stay, and so do ＜ and ＞,
# which would otherwise turn harmless text into role tags.
_FULL_WIDTH = re.compile("[０-９Ａ-Ｚａ-ｚ％＋－＝／．＆＠＿＊＃]+")
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Full-width letters, digits and signs, and their ASCII forms, for `str.translate`."""

_REMOVED = (
    ("control character", _CONTROLS),
    ("zero-width character", _ZERO_WIDTH),
    ("bidi control", _BIDI),
    ("private-use character", _PRIVATE_USE),
)
_ANY_REMOVED = re.compile("[" + "".join(pattern.pattern.strip("[]+") for _, pattern in _REMOVED) + "]")


def normal_form(text: str, counts: Counter[str] | None = None) -> str:
    """Text in canonical form: NFC, "\\n" line ends, no invisible characters, single spaces, ASCII digits and letters.

    counts: receives, under the name of each repair, the number of characters it touched.

    >>> normal_form("Ｂ超\\u200b　５ｍｇ\\r\\n\\r\\n\\r\\n。")
    'B超 5mg\\n\\n。'
    """
    tally: Counter[str] = Counter() if counts is None else counts
    if _ANY_REMOVED.search(text):
        for name, pattern in _REMOVED:
            text = _counted_sub(pattern, "", text, name, tally)
    text = _counted_sub(_LINE_ENDS, "\n", text, "line end", tally)
    if not unicodedata.is_normalized("NFC", text):
        tally["not in NFC"] += 1
        text = unicodedata.normalize("NFC", text)
    if matches := _FULL_WIDTH.findall(text):
        tally["full-width character"] += sum(map(len, matches))
        text = _FULL_WIDTH.sub(lambda match: match.group().translate(HALF_WIDTH), text)
    text = _SPACES.sub(" ", text)
    text = _SPACE_AT_LINE_END.sub("\n", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def _counted_sub(pattern: re.Pattern[str], replacement: str, text: str, name: str, counts: Counter[str]) -> str:
    matches = pattern.findall(text)
    if not matches:
        return text
    counts[name] += sum(map(len, matches))
    return pattern.sub(replacement, text)
