"""Texts that were decoded wrongly before they came here: repaired where the bytes are all there, else told to be lost.

Invariant: a repair is exact, the decoding that was left out; text that was right is never touched.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

REPLACEMENT_CHARACTER = "\ufffd"
_PIECE = 8
_MIN_DISTINCT_SHARE = 0.3
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

# UTF-8 that was read as Windows-1252: a lead byte C2-F4 and continuation bytes, as that encoding shows them.
_BYTES_1252 = {bytes([byte]).decode("cp1252", "replace"): byte for byte in range(0x80, 0x100)}
_BYTES_1252.update({chr(byte): byte for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)})
_BYTES_1252.pop(REPLACEMENT_CHARACTER, None)
_CONTINUATIONS = "".join(re.escape(sign) for sign, byte in _BYTES_1252.items() if byte < 0xC0)
_READ_AS_1252 = re.compile(f"(?:[\u00c2-\u00f4][{_CONTINUATIONS}]{{1,3}})+")
# What may come out: Latin-1, Greek, punctuation, signs of measure and mathematics, Chinese. An accented capital before a
# curly quote ("CAFÉ”") would give letters of other alphabets, and is right as it is.
_LIKELY = re.compile("[\u00a0-\u00ff\u0370-\u03ff\u2010-\u23ff\u25a0-\u26ff\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+")

# UTF-8 that was read as GBK holds one of these rare characters, which punctuation and the commonest words become.
_HINT_OF_GBK = re.compile("[锛銆鈥鈮鐨鏄鍦鍙鎴鐢鏈瑕]")
_UTF8_BYTES = re.compile(rb"[\xe2-\xe9][\x80-\xbf](?:[\x80-\xbf]|(?=\?))|\xc2[\xa0-\xbf]")  # the last byte may be lost
_LOST_TWICE = re.compile(
    "锟斤拷|锟斤|斤拷锟|烫烫烫烫|屯屯屯屯"
)  # U+FFFD in UTF-8 read as GBK; memory that nobody filled


def repair_decoding(text: str, counts: Counter[str] | None = None) -> str:
    """Text in which UTF-8 that was read as Windows-1252 is read rightly. counts: receives "double decoding".

    >>> repair_decoding("Patientâ€™s temperature 37Â°C, é«˜è¡€åŽ‹")
    'Patient’s temperature 37°C, 高血压'
    """

    def repair(match: re.Match[str]) -> str:
        raw = bytes(_BYTES_1252[sign] for sign in match[0])
        try:
            found = raw.decode("utf-8")
        except UnicodeDecodeError:
            return match[0]
        if not _LIKELY.fullmatch(found):
            return match[0]
        if counts is not None:
            counts["double decoding"] += 1
        return found

    return _READ_AS_1252.sub(repair, text)


def find_damage(text: str) -> str | None:
    """Why the text is damaged, or None: characters that a decoder gave up, or traces of a wrong decoding.

    >>> find_damage("剂量为\\ufffd毫克"), find_damage("锟斤拷锟斤拷高血压"), find_damage("鏄參鎬х梾锛岄渶瑕侀暱鏈熸不"), find_damage("高血压")
    ('damaged text', 'damaged text: wrongly decoded, 锟斤拷', 'damaged text: wrongly decoded, UTF-8 as GBK', None)
    """
    if REPLACEMENT_CHARACTER in text:
        return "damaged text"
    if lost := _LOST_TWICE.search(text):
        return f"damaged text: wrongly decoded, {lost[0]}"
    if _HINT_OF_GBK.search(text) and _was_read_as_gbk(text):
        return "damaged text: wrongly decoded, UTF-8 as GBK"
    return None


def _was_read_as_gbk(text: str) -> bool:
    """Whether half of the bytes that are not ASCII, in GBK, are those of UTF-8; in Chinese that was right hardly any are."""
    raw = text.encode("gb18030", "ignore")
    return 2 * sum(map(len, _UTF8_BYTES.findall(raw))) >= sum(byte > 0x7F for byte in raw)


def distinct_share(text: str) -> float:
    """Share of a text's pieces of 8 characters that differ, 1 for texts too short to repeat themselves: linear time.

    >>> round(distinct_share("高血压要治疗。" * 20), 2), distinct_share("高血压要治疗。")
    (0.05, 1.0)
    """
    if len(text) < 12 * _PIECE:
        return 1.0
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    number = len(codes) - _PIECE + 1
    pieces = np.zeros(number, np.uint64)
    for place in range(_PIECE):  # a polynomial of the signs modulo 2^64: equal pieces have equal values
        pieces = pieces * _MULTIPLIER + codes[place : place + number]
    pieces.sort()
    return (1 + int(np.count_nonzero(pieces[1:] != pieces[:-1]))) / number


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
