"""Which language a text is in, by its script: Chinese, English, or neither.

The corpus has two languages with disjoint scripts, so counting letters decides exactly what matters here, in linear
time and without a model. English is told from other Latin-script languages by its commonest words.
"""

from __future__ import annotations

import re

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")
_LATIN_WORD = re.compile("[A-Za-zÀ-ɏ]+")
_OTHER_LETTER = re.compile("[\u0370-\u05ff\u0600-\u1fff\u3040-\u30ff\uac00-\ud7af]")
_ENGLISH_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the of and to in a is that for it as with was on are by this be from or an at which not have has were can may "
        "these their its than more such also been used after between during when who patients should you your if",
    )
)
# Running English has 35-50 % function words; headlines and lists of terms have few. Below this share a long text is
# taken for another Latin-script language.
_MIN_ENGLISH_SHARE = 0.08
_MIN_WORDS_TO_JUDGE = 20


def count_size(text: str, language: str) -> int:
    """Length in the unit of the language: Han characters plus Latin words for "zh", Latin words for "en".

    >>> count_size("阿司匹林 aspirin", "zh"), count_size("Aspirin 100 mg daily", "en")
    (5, 4)
    """
    if language == "zh":
        return len(_HAN.findall(text)) + len(_LATIN_WORD.findall(text))
    return len(text.split())


def detect_language(text: str) -> str:
    """ "zh", "en" or "other". Text without letters is "other".

    >>> detect_language("高血压 (hypertension) 的治疗"), detect_language("Hypertension is common")
    ('zh', 'en')
    """
    han = len(_HAN.findall(text))
    words = _LATIN_WORD.findall(text)
    other = len(_OTHER_LETTER.findall(text))
    if not han and not words:
        return "other"
    if other > han + sum(map(len, words)):
        return "other"
    # A Han character carries about as much as half a Latin word.
    if han >= 0.5 * len(words):
        return "zh"
    if len(words) >= _MIN_WORDS_TO_JUDGE:
        english = sum(word.lower() in _ENGLISH_WORDS for word in words)
        return "en" if english >= _MIN_ENGLISH_SHARE * len(words) else "other"
    return "en"
