"""Quality gates: why a question or an answer is refused.

Invariant: a gate is a pure function of the pair and the passage; the first that refuses names the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_huatuo.config import above_zero, at_least, within
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.records import LANGUAGES, Document
from megatron_huatuo.text.damage import REPLACEMENT_CHARACTER, is_repetitive
from megatron_huatuo.text.language import detect_language
from megatron_huatuo.unify.gates_support import (
    content_pieces,
    least_supported_sentence,
    share_supported,
    unsupported_numbers,
)

# The recipe refuses every 参考; medical text says 参考值 and 仅供参考 itself, so only 参考 with a text behind it counts.
_LEAK_ZH = re.compile(
    r"参考(?:文本|资料|文献|内容|信息|材料|上文|原文)|(?:根据|依据|按照|基于|结合)(?:上述|以上|所给|所提供|提供|给定|给出)的?"
    r"(?:文本|资料|文献|内容|信息|材料|文章|段落)|(?<![中英法德日俄外论])文中|上文|原文|(?<!基)本文(?!化)|该文|这段(?:话|文字|文本|内容)|文本中|文章中"
)
_LEAK_EN = re.compile(
    r"\b(?:the|this|provided|given|above|reference)\s+(?:text|passage(?!\s+of\b)|excerpt|reference\s+text)\b"
    r"|\bprovided\s+(?:content|information|material)\b"
    r"|\bas\s+(?:mentioned|described|stated|noted)\s+(?:above|in\s+the\s+(?:text|passage|article))\b"
    r"|\baccording\s+to\s+the\s+(?:article|reference|document|author|content)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^(?:很抱歉|抱歉|对不起|作为(?:一个|一名|一款)?(?:人工智能|AI|大?语言模型|虚拟)|我(?:是|只是)一个(?:人工智能|AI|语言模型)|"
    r"我无法(?:提供|回答)|I(?:'m| am) sorry|Sorry,|I apologi[sz]e|As an AI|As a (?:large )?language model|"
    r"I can(?:not|'t) (?:provide|answer|help|assist)|I(?:'m| am) (?:unable|not able) to)",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"希望(?:以上|这些|我的)(?:信息|内容|回答|解释)?(?:对您|对你|能)|如(?:果|您)?(?:还)?有(?:其他|任何|更多)(?:疑问|问题)[^。]{0,12}(?:随时|告诉我)|"
    r"I hope this helps|let me know if you have|feel free to ask",
    re.IGNORECASE,
)
# Marks of the prompts themselves.
_PROMPT_MARKS = ("【内容】", "【问题】", "[Content]", "[Question]")


@dataclass(frozen=True)
class QualitySettings:
    """Limits of the quality gates."""

    max_question_characters_zh: int = 180
    """Longer Chinese questions are refused, in characters"""
    max_question_characters_en: int = 360
    """Longer English questions are refused, in characters"""
    min_answer_characters: int = 8
    """Shorter answers are refused, in characters"""
    max_answer_characters: int = 8000
    """Longer answers are refused, in characters"""
    min_faithfulness: float = 0.3
    """Least share of the answer's content that the passage supports, 0 to 1; 0 switches the gate off"""
    min_sentence_faithfulness: float = 0.2
    """Least share of each longer sentence's content that passage or question support, 0 to 1; 0 switches the gate off"""
    min_coverage: float = 0.1
    """Least share of the passage's content that the pair keeps, 0 to 1; 0 switches the gate off"""
    check_numbers: bool = True
    """Refuse answers with numbers or doses that the passage does not state"""
    near_duplicate_similarity: float = 0.85
    """Later pairs at least so similar to an earlier one are refused, 0 to 1; above 1 switches the gate off"""

    def __post_init__(self) -> None:
        for name in ("max_question_characters_zh", "max_question_characters_en"):
            at_least(name, getattr(self, name), 1)
        if not 0 <= self.min_answer_characters < self.max_answer_characters:
            raise ConfigError(
                f"wrong answer lengths: got min_answer_characters={self.min_answer_characters} and "
                f"max_answer_characters={self.max_answer_characters}, need 0 <= min < max. Change one."
            )
        for name in ("min_faithfulness", "min_sentence_faithfulness", "min_coverage"):
            within(name, getattr(self, name), 0, 1)
        above_zero("near_duplicate_similarity", self.near_duplicate_similarity)


class Demands(NamedTuple):
    """What a style asks of its questions and answers beyond the settings, or does not ask."""

    max_question_characters: int | None = None
    """Instead of the limit of the settings"""
    may_mention_text: bool = False
    """The conversation shows the passage, and may speak of it"""
    table: bool = False
    """The answer must hold a table"""


_PLAIN = Demands()
_TABLE = re.compile(r"^[ \t]*\|.*\|[ \t]*\n[ \t]*\|[\s:|-]*-[\s:|-]*\|[ \t]*\n[ \t]*\|", re.MULTILINE)
_TABLE_MARKS = re.compile(r"[\s|:-]+")


class Gates:
    """All gates under one setting."""

    def __init__(self, settings: QualitySettings) -> None:
        self.settings = settings

    def refuse_question(
        self, question: str, document: Document | None, language: str, demands: Demands = _PLAIN
    ) -> str | None:
        """The reason why the question is not usable, or None. document: its passage, if it has one."""
        limits = self.settings
        limit = limits.max_question_characters_zh if language == "zh" else limits.max_question_characters_en
        limit = demands.max_question_characters or limit
        if not question.strip():
            return "blank question"
        if reason := _refuse_text("question", question, language, demands.may_mention_text):
            return reason
        if len(question) > limit:
            return f"question too long: {len(question)} characters"
        if document is not None and question.strip() == document.text.strip():
            return "question is an echo: of the passage"
        return None

    def refuse_answer(
        self, answer: str, question: str, document: Document, language: str, demands: Demands = _PLAIN
    ) -> str | None:
        """The reason why the answer to a question about a passage is no good, or None."""
        return (
            self.refuse_reply(answer, question, language, demands)
            or self._refuse_unsupported(answer, question, document, language)
            or self._refuse_thin(answer, question, document, language)
        )

    def refuse_pairs(
        self, pairs: Sequence[tuple[str, str]], document: Document, language: str, demands: Demands
    ) -> str | None:
        """The reason why a conversation of several questions and answers about a passage is no good, or None.

        What earlier turns say supports later answers; all answers together must cover the passage.
        """
        said = ""
        for number, (question, answer) in enumerate(pairs, 1):
            said = f"{said}\n{question}"
            reason = (
                self.refuse_question(question, document, language, demands)
                or self.refuse_reply(answer, question, language, demands)
                or self._refuse_unsupported(answer, said, document, language)
            )
            if reason:
                name, _, details = reason.partition(": ")
                return f"{name}: pair {number}: {details}" if details else f"{name}: pair {number}"
            said = f"{said}\n{answer}"
        return self._refuse_thin("\n".join(answer for _, answer in pairs), said, document, language)

    def refuse_reply(self, answer: str, question: str, language: str, demands: Demands = _PLAIN) -> str | None:
        """The reason why an answer is not usable by itself, or None."""
        limits, length = self.settings, len(answer.strip())
        if length < limits.min_answer_characters:
            return f"answer too short: {length} characters"
        if length > limits.max_answer_characters:
            return f"answer too long: {length} characters"
        if reason := _refuse_text("answer", answer, language, demands.may_mention_text):
            return reason
        if match := _BOILERPLATE.search(answer):
            return f"boilerplate: {match.group()}"
        if answer.strip() == question.strip():
            return "answer is an echo: of the question"
        if demands.table and not _TABLE.search(answer):
            return "no table in the answer"
        if is_repetitive(_TABLE_MARKS.sub(" ", answer) if demands.table else answer):
            return "answer repeats itself"
        return None

    def _refuse_unsupported(self, answer: str, question: str, document: Document, language: str) -> str | None:
        passage = f"{document.title or ''}\n{document.text}"
        if self.settings.check_numbers and (missing := unsupported_numbers(answer, f"{passage}\n{question}")):
            return f"numbers not in the passage: {', '.join(missing[:5])}"
        scores = measure_support(answer, question, document, language)
        if scores is None:
            return None
        faithfulness = scores[0]
        if faithfulness < self.settings.min_faithfulness:
            return f"unfaithful: faithfulness {faithfulness:.2f}"
        support, sentence = least_supported_sentence(answer, f"{passage}\n{question}", language)
        if support < self.settings.min_sentence_faithfulness:
            return f"unfaithful sentence: faithfulness {support:.2f}: {sentence[:80]}"
        return None

    def _refuse_thin(self, answer: str, question: str, document: Document, language: str) -> str | None:
        scores = measure_support(answer, question, document, language)
        if scores is not None and scores[1] < self.settings.min_coverage:
            return f"covers too little: coverage {scores[1]:.2f}"
        return None


def pair_language(question: str, answer: str) -> str:
    """The language of a pair that says nothing about it: the question's, or the answer's where that is unclear."""
    found = detect_language(question)
    return found if found in LANGUAGES else detect_language(answer)


def measure_support(answer: str, question: str, document: Document, language: str) -> tuple[float, float] | None:
    """(faithfulness, coverage), each 0 to 1; None when passage and pair differ in language."""
    if language != document.language:
        return None
    passage = content_pieces(f"{document.title or ''}\n{document.text}", language)
    answered, asked = content_pieces(answer, language), content_pieces(question, language)
    return share_supported(answered, passage | asked), share_supported(passage, answered | asked)


def _refuse_text(name: str, text: str, language: str, may_mention_text: bool) -> str | None:
    """What holds for questions and answers alike."""
    if REPLACEMENT_CHARACTER in text:
        return f"damaged text: U+FFFD in the {name}"
    if match := _REFUSAL.search(text):
        return f"refusal: {match.group()}"
    if any(mark in text for mark in _PROMPT_MARKS):
        return f"{name} is an echo: of the prompt"
    if not may_mention_text and (leak := find_leak(text)):
        return f"{name} mentions the text: {leak}"
    found = detect_language(text)
    if found != language:
        return f"wrong language of the {name}: got {found}, need {language}"
    return None


def find_leak(text: str) -> str | None:
    """The words that show that there was a reference text, or None."""
    match = _LEAK_ZH.search(text) or _LEAK_EN.search(text)
    return match.group() if match else None
