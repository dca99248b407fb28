"""The backend without a model: the title asks, the passage answers.

For demos and tests. Its pairs teach the words of the passages, not the style of a conversation.
"""

from __future__ import annotations

import hashlib
from typing import Any

from megatron_huatuo.storage.records import Document
from megatron_huatuo.text.sentences import first_sentence, split_clauses
from megatron_huatuo.unify.writers.writer import Ask, Draft, Spent
from megatron_huatuo.unify.writers.writer_styles import QUESTION_ANSWER, Style

_TITLE_QUESTIONS = {
    "zh": (
        "请介绍一下：{title}。",
        "关于“{title}”，需要了解哪些要点？",
        "请说明：{title}。",
        "什么是“{title}”？请简要说明。",
    ),
    "en": (
        "What should I know about the following topic: {title}?",
        "Please explain: {title}.",
        "Can you tell me about this: {title}?",
        "Please give an overview of the following: {title}.",
    ),
}
_LEAD_QUESTIONS = {"zh": "请具体说明：{lead}……", "en": "Please explain in detail: {lead} ..."}
_PART_QUESTIONS = {
    "zh": "关于“{title}”，请具体说明：{lead}……",
    "en": "On {title}, please explain in detail: {lead} ...",
}
TEMPLATES_VERSION = 1
TEMPLATES = {"backend": "template", "templates_version": TEMPLATES_VERSION}
# Together with the words around them they stay below the limit of a question.
_MAX_TITLE = {"zh": 60, "en": 180}
_MAX_LEAD = {"zh": 24, "en": 80}


class TemplateBackend:
    """Deterministic pairs: equal documents give equal pairs."""

    tries = 1

    def __init__(self, language: str | None = None) -> None:
        """language: that pairs must have; templates do not translate, so the gates refuse passages in another."""
        self._language = language

    def language(self, given: str) -> str:
        """The language asked for, else the passage's own."""
        return self._language or given

    def style(self, document: Document) -> Style:
        """Questions and answers: templates know no other style."""
        return Style(QUESTION_ANSWER, self.language(document.language), TEMPLATES_VERSION)

    def provenance(self, ask: Ask) -> dict[str, Any]:
        """Name and version of the templates."""
        return dict(TEMPLATES)

    async def draft(self, ask: Ask, attempt: int, spent: Spent) -> Draft:
        """The question from the title, or from the opening words where there is none; the passage as the answer."""
        if ask.document is None:  # without a model there is no answer
            return Draft("", "query without an answer: the template backend knows none", final=True)
        return Draft(template_question(ask.document) if ask.kind == "question" else ask.document.text)

    async def check(
        self, document: Document | None, question: str, answer: str, language: str, spent: Spent
    ) -> str | None:
        """Nothing: there is no second model without a first."""
        return None

    def usage(self) -> dict[str, float]:
        """Nothing is asked, nothing is spent."""
        return {}


def template_question(document: Document) -> str:
    """A question about the passage. One passage of several names its opening words too, so that questions differ."""
    language = document.language
    title = (document.title or "").strip().rstrip("。.")
    if len(title) > _MAX_TITLE[language]:
        title = ""
    lead = _lead(document.text, _MAX_LEAD[language])
    origin = (document.metadata or {}).get("origin") or {}
    if title and origin.get("parts", 1) > 1:
        return _PART_QUESTIONS[language].format(title=title, lead=lead)
    if title.endswith(("？", "?")):
        return title
    if title:
        choices = _TITLE_QUESTIONS[language]
        return choices[_stable_number(document.id) % len(choices)].format(title=title)
    return _LEAD_QUESTIONS[language].format(lead=lead)


def _lead(text: str, max_characters: int) -> str:
    """The opening clauses of the first sentence, up to `max_characters`; at least a part of the first clause."""
    lead = ""
    for clause in split_clauses(first_sentence(text)):
        if lead and len(lead) + len(clause) > max_characters:
            break
        lead += clause
    return lead[:max_characters].strip().rstrip("。，、：；！？.,:;!?")


def _stable_number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
