"""How much of an answer its passage supports, and which numbers it does not state.

Faithfulness is the share of the answer's content that stands in the passage, coverage the share of the passage's content
that stands in the pair. Content: two-character pieces of Chinese, content words of English. Both are only defined when
passage and answer share a language; numbers are compared across languages, to the digit and with their unit.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from megatron_huatuo.text.sentences import split_sentences

_HAN_RUN = re.compile("[\u3400-\u9fff]+")
_WORD = re.compile(r"[A-Za-z][A-Za-z-]{2,}")
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the and that for with was are were this these those from have has had not but can may will would should could "
        "which when who whom what where how than then there their its also such more most other some any all each "
        "into over under between during after before about through been being does did doing you your they them our "
        "his her she him because while both only very often usually include includes including used use using",
    )
)

# A sentence of fewer pieces is not judged by itself.
_LEAST_PIECES = {"zh": 8, "en": 6}

# Longer units first: the alternation takes the first that fits.
_UNITS = {
    "kg": ("kg", "千克", "公斤"), "mg": ("mg", "毫克"), "μg": ("μg", "µg", "ug", "mcg", "微克"), "ng": ("ng", "纳克"),
    "ml": ("ml", "mL", "毫升"), "mmol": ("mmol", "毫摩尔"), "mmhg": ("mmHg", "毫米汞柱"), "cm": ("cm", "厘米"),
    "mm": ("mm", "毫米"), "%": ("%", "％", "percent", "per cent"), "iu": ("IU", "国际单位"), "g": ("g", "克"),
    "l": ("L", "升"), "h": ("hours", "hour", "小时"), "min": ("minutes", "minute", "min", "分钟"),
    "day": ("days", "day", "天", "日"), "week": ("weeks", "week", "周"), "month": ("months", "month", "个月"),
    "year": ("years", "year", "岁", "年"),
}  # fmt: skip
_UNIT_OF = {spelling.lower(): unit for unit, spellings in _UNITS.items() for spelling in spellings}
_UNIT = "|".join(re.escape(name) for name in sorted(_UNIT_OF, key=len, reverse=True))
# A number is not part of a word (B12, CD4, 30S); "1." or "2)" at the start of a line counts items, not medicine.
_NUMBER = re.compile(rf"(?<![A-Za-z\d.])(\d[\d,]*(?:\.\d+)?)(?:[\s-]?({_UNIT})(?![A-Za-z]))?(?![A-Za-z\d])", re.I)
_LIST_MARK = re.compile(r"^[ \t]*[(（]?\d{1,2}[.)、）．][ \t]*(?!\d)", re.MULTILINE)
_HAN_NUMBER = re.compile("[〇零一二三四五六七八九十百千两]+")
_HAN_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_POWERS = {"十": 10, "百": 100, "千": 1000}
_EN_NUMBERS = {
    word: value
    for value, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
}
_EN_NUMBER = re.compile(rf"\b(?:{'|'.join(_EN_NUMBERS)})\b", re.IGNORECASE)


@lru_cache(maxsize=256)  # a passage is compared with question, answer and sentences, and again for the report
def content_pieces(text: str, language: str) -> frozenset[str]:
    """What carries meaning: pairs of neighbouring Han characters for "zh"; words, cut to six letters, for "en".

    Latin words in Chinese text (drug names, abbreviations) count as words.

    >>> sorted(content_pieces("高血压", "zh")), sorted(content_pieces("The patients were treated", "en"))
    (['血压', '高血'], ['patien', 'treate'])
    """
    words = frozenset(word.lower()[:6] for word in _WORD.findall(text) if word.lower() not in _STOP_WORDS)
    if language == "en":
        return words
    pairs = {run[i : i + 2] for run in _HAN_RUN.findall(text) for i in range(len(run) - 1)}
    return words | pairs


def share_supported(pieces: frozenset[str], by: frozenset[str]) -> float:
    """Share of `pieces` that stand in `by`; 1.0 for none at all."""
    return len(pieces & by) / len(pieces) if pieces else 1.0


def least_supported_sentence(answer: str, by: str, language: str) -> tuple[float, str]:
    """(share supported by the text `by`, sentence) of the answer's least supported sentence; (1.0, "") without any.

    Sentences with little content are left out: headings and short remarks say nothing that could be wrong.
    """
    supporting, least = content_pieces(by, language), (1.0, "")
    for sentence in split_sentences(answer):
        pieces = content_pieces(sentence, language)
        if len(pieces) >= _LEAST_PIECES[language]:
            least = min(least, (share_supported(pieces, supporting), sentence.strip()))
    return least


def unsupported_numbers(answer: str, passage: str) -> list[str]:
    """Numbers of the answer, with their units, that the passage does not state.

    With a unit both must agree (5 mg is not 5 g), spelt in either language; without one the value is enough. Numbers in
    words (三, three) in the passage support digits in the answer.

    >>> unsupported_numbers("每日5毫克，服用3天", "Take 5 mg daily for three days")
    []
    >>> unsupported_numbers("Take 50 mg", "Take 5.0 mg"), unsupported_numbers("5 g", "5 mg")
    (['50 mg'], ['5 g'])
    """
    stated = _numbers(passage)
    values = {value for value, _ in stated} | _numbers_in_words(passage)
    with_unit = {(value, unit) for value, unit in stated if unit}
    # A unit in the answer counts against it only if the passage gives this value another unit.
    bare = {value for value, unit in stated if not unit} | _numbers_in_words(passage)
    missing = []
    for value, unit in _numbers(_LIST_MARK.sub("", answer)):
        if value not in values or (unit and (value, unit) not in with_unit and value not in bare):
            missing.append(f"{value} {unit}".strip())
    return list(dict.fromkeys(missing))


def _numbers(text: str) -> list[tuple[str, str]]:
    """(value in canonical digits, canonical unit or "") of every number."""
    return [(_canonical(match[1]), _UNIT_OF.get((match[2] or "").lower(), "")) for match in _NUMBER.finditer(text)]


def _canonical(digits: str) -> str:
    """1,000 and 1000.0 are 1000."""
    return format(Decimal(digits.replace(",", "")).normalize(), "f")


def _numbers_in_words(text: str) -> set[str]:
    han = {str(_read_han(run)) for run in _HAN_NUMBER.findall(text)}
    return han | {str(_EN_NUMBERS[word.lower()]) for word in _EN_NUMBER.findall(text)}


def _read_han(run: str) -> int:
    """三百二十 is 320; a run without powers is read digit by digit."""
    if not any(character in _HAN_POWERS for character in run):
        return int("".join(str(_HAN_DIGITS[character]) for character in run))
    total, digit = 0, 0
    for character in run:
        if character in _HAN_POWERS:
            total += (digit or 1) * _HAN_POWERS[character]
            digit = 0
        else:
            digit = _HAN_DIGITS[character]
    return total + digit
