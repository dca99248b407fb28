"""The two steps of the recipe: a question that the passage answers, then the answer; each tried until a gate opens.

Invariant: a pair that leaves here has passed every gate; a refusal carries the reason of the last try.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from megatron_huatuo.storage.records import Document
from megatron_huatuo.text.normalise import normalise
from megatron_huatuo.unify.backend import Backend, Draft, Pair, Refusal
from megatron_huatuo.unify.gates import Gates
from megatron_huatuo.unify.task import Query

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_LABEL = re.compile(r"^(?:【?(?:问题|提问|问|答案|回答|答)】?|Question|Q|Answer|A)\s*[:：]\s*", re.IGNORECASE)
_QUOTES = {"“": "”", '"': '"', "「": "」"}


async def rewrite(backend: Backend, document: Document, gates: Gates) -> Pair | Refusal:
    """One pair for one passage, or the reason why there is none."""
    language = backend.language(document.language)
    question, reason = await _first_good(
        backend.tries,
        lambda attempt: backend.draft_question(document, attempt),
        tidy_question,
        lambda text: gates.refuse_question(text, document, language),
    )
    if reason:
        return Refusal(reason, question)
    answer, reason = await _first_good(
        backend.tries,
        lambda attempt: backend.draft_answer(document, question, attempt),
        tidy_answer,
        lambda text: gates.refuse_answer(text, question, document, language),
    )
    reason = reason or await backend.check(document, question, answer, language)
    if reason:
        return Refusal(reason, question, answer)
    return Pair(question, answer, backend.provenance(language))


async def reply_to(backend: Backend, query: Query, gates: Gates) -> Pair | Refusal:
    """The query with an answer, or the reason why there is none."""
    language = backend.language(query.language)
    answer, reason = await _first_good(
        backend.tries,
        lambda attempt: backend.draft_reply(query, attempt),
        tidy_answer,
        lambda text: gates.refuse_reply(text, query.text, language),
    )
    reason = reason or await backend.check(None, query.text, answer, language)
    if reason:
        return Refusal(reason, query.text, answer)
    return Pair(query.text, answer, backend.provenance(language))


async def _first_good(
    tries: int,
    draft: Callable[[int], Awaitable[Draft]],
    tidy: Callable[[str], str],
    refuse: Callable[[str], str | None],
) -> tuple[str, str | None]:
    """(text, None) of the first draft that passes, else (last text, its reason)."""
    text, reason = "", None
    for attempt in range(tries):
        drafted = await draft(attempt)
        text = tidy(drafted.text)
        reason = drafted.problem or refuse(text)
        if reason is None or drafted.final:
            break
    return text, reason


def tidy_question(text: str) -> str:
    """A question without the model's thinking, label and quotes.

    >>> tidy_question("<think>…</think>问题：“高血压怎么治疗？”")
    '高血压怎么治疗？'
    """
    text = tidy_answer(text)
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def tidy_answer(text: str) -> str:
    """An answer without the model's thinking and label, in the text policy of the project."""
    return _LABEL.sub("", normalise(without_thinking(text)))


def without_thinking(text: str) -> str:
    """What a reasoning model says after its thoughts."""
    return _THINKING.sub("", text)
