"""Personal data in text: phone numbers, e-mail addresses and identity numbers become marks.

Invariant: a mark says what stood there and in which language; numbers that could be medicine (doses, dates, results)
stay.
"""

from __future__ import annotations

import re
from collections import Counter

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}(?![\w@])", re.ASCII)
# Every number below has at least seven digits and signs in a row; most texts have none, and are spared six searches.
_LONG_NUMBER = re.compile(r"\d[\d ()./-]{6,}")
_IDENTITY = re.compile(r"(?<![\dA-Za-z])\d{17}[\dXx](?![\dA-Za-z])")
_CHINESE_MOBILE = re.compile(r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![\d.]\d|\d)")
_CHINESE_LANDLINE = re.compile(r"(?<![\d.])0\d{2,3}[- ]\d{7,8}(?:[- ]\d{1,4})?(?!\d)")
_FOREIGN_PHONE = re.compile(r"(?<![\d.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?!\d)")
_INTERNATIONAL_PHONE = re.compile(r"(?<![\d.])\+\d{1,3}(?:[ -]\d{2,4}){2,4}(?!\d)")

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK_DIGITS = "10X98765432"
_MARKS = {"zh": {"phone": "[电话]", "e-mail": "[邮箱]", "identity number": "[证件号]"}}
_MARKS["en"] = {"phone": "[phone]", "e-mail": "[email]", "identity number": "[id number]"}


def mask_personal_data(text: str, language: str, counts: Counter[str] | None = None) -> str:
    """Text with marks in place of personal data.

    counts: receives "masked phone", "masked e-mail" and "masked identity number".
    Chinese identity numbers count only with the right check digit, so a long sample number stays.

    >>> mask_personal_data("电话13812345678，邮箱a.b@c.com，剂量500mg", "zh")
    '电话[电话]，邮箱[邮箱]，剂量500mg'
    """
    tally: Counter[str] = Counter() if counts is None else counts
    marks = _MARKS[language]

    def mark(kind: str) -> str:
        tally[f"masked {kind}"] += 1
        return marks[kind]

    if "@" in text:
        text = _EMAIL.sub(lambda match: mark("e-mail"), text)
    if not _LONG_NUMBER.search(text):
        return text
    text = _IDENTITY.sub(lambda match: mark("identity number") if is_identity_number(match[0]) else match[0], text)
    for pattern in (_CHINESE_MOBILE, _CHINESE_LANDLINE, _FOREIGN_PHONE, _INTERNATIONAL_PHONE):
        text = pattern.sub(lambda match: mark("phone"), text)
    return text


def is_identity_number(digits: str) -> bool:
    """Whether 18 characters are a Chinese identity number: plausible birth date, right check digit (GB 11643)."""
    year, month, day = int(digits[6:10]), int(digits[10:12]), int(digits[12:14])
    if not (1900 <= year <= 2100 and 1 <= month <= 12 and 1 <= day <= 31):
        return False
    total = sum(int(digit) * weight for digit, weight in zip(digits, _WEIGHTS, strict=False))
    return _CHECK_DIGITS[total % 11] == digits[17].upper()
