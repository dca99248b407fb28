"""Quality gates: why a pair is refused.

Invariant: a gate is a pure function of the pair and the passage; the first that refuses names the reason.
"""

from __future__ import annotations

import re

from megatron_huatuo.storage.records import Document
from megatron_huatuo.text.language import detect_language
from megatron_huatuo.text.normalise import REPLACEMENT_CHARACTER
from megatron_huatuo.unify.backend import Pair
from megatron_huatuo.unify.settings import UnificationSettings

# The recipe refuses every 参考; medical text says 参考值 and 仅供参考 itself, so only 参考 with a text behind it counts.
_LEAK_ZH = re.compile(
    r"参考(?:文本|资料|文献|内容|信息|材料|上文|原文)|(?:根据|依据|按照|基于|结合)(?:上述|以上|所给|所提供|提供|给定|给出)的?"
    r"(?:文本|资料|文献|内容|信息|材料|文章|段落)|(?:文中|上文|原文|本文|该文|这段(?:话|文字|文本)|文本中|文章中|资料中)"
)
_LEAK_EN = re.compile(
    r"\b(?:the|this|provided|given|above|reference)\s+(?:text|passage|excerpt|reference\s+text|provided\s+text)\b"
    r"|\bas\s+(?:mentioned|described|stated|noted)\s+(?:above|in\s+the\s+(?:text|passage|article))\b"
    r"|\baccording\s+to\s+the\s+(?:article|reference|document|author)",
    re.IGNORECASE,
)


def refuse_pair(pair: Pair, document: Document, settings: UnificationSettings) -> str | None:
    """The reason why the pair is no good, or None."""
    return refuse_question(pair.question, settings) or refuse_answer(pair.answer, settings)


def refuse_question(question: str, settings: UnificationSettings) -> str | None:
    """The reason why the question is no good, or None."""
    if not question.strip():
        return "blank question"
    chinese = detect_language(question) == "zh"
    if len(question) > (settings.max_question_characters_zh if chinese else settings.max_question_characters_en):
        return f"question too long: {len(question)} characters"
    if REPLACEMENT_CHARACTER in question:
        return "damaged text: U+FFFD in the question"
    if leak := find_leak(question):
        return f"question mentions the text: {leak}"
    return None


def refuse_answer(answer: str, settings: UnificationSettings) -> str | None:
    """The reason why the answer is no good, or None."""
    length = len(answer.strip())
    if length < settings.min_answer_characters:
        return f"answer too short: {length} characters"
    if length > settings.max_answer_characters:
        return f"answer too long: {length} characters"
    if REPLACEMENT_CHARACTER in answer:
        return "damaged text: U+FFFD in the answer"
    if leak := find_leak(answer):
        return f"answer mentions the text: {leak}"
    return None


def find_leak(text: str) -> str | None:
    """The words that show that there was a reference text, or None."""
    match = _LEAK_ZH.search(text) or _LEAK_EN.search(text)
    return match.group() if match else None
