"""From a passage to a conversation: what a backend is asked for, step by step, each tried until the gates let it pass.

Invariant: a conversation that leaves here has passed every gate; a refusal carries the reason of the last try.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from megatron_huatuo.storage.records import Document
from megatron_huatuo.text.normal_form import normal_form
from megatron_huatuo.unify.gates import Gates
from megatron_huatuo.unify.input_documents import Invitation, Query
from megatron_huatuo.unify.writers.writer_styles import Style

ENDPOINT_FAILED = "endpoint failed"
"""The reason of documents that no request could be answered for; they are asked again by a later run."""

Pairs = tuple[tuple[str, str], ...]
"""Questions with their answers, in order"""


@dataclass(frozen=True)
class Ask:
    """One thing that a backend is asked for, in a language. kind "pairs": all questions and answers at once."""

    kind: Literal["question", "answer", "pairs", "reply", "replay question", "replay answer"]
    language: str
    document: Document | None = None
    style: Style | None = None
    question: str = ""
    invitation: Invitation | None = None


@dataclass(frozen=True)
class Draft:
    """One text of a backend, or pairs. `problem`: why it is of no use, as a reason; `final`: so would others be."""

    text: str
    problem: str | None = None
    final: bool = False
    pairs: Pairs = ()


Spent = Counter[tuple[str, str]]
"""Tokens by (model, "prompt" or "completion") of all replies that one document took"""


@dataclass(frozen=True)
class WrittenPair:
    """A finished conversation; `provenance` says how the backend made it."""

    pairs: Pairs
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """No conversation: `reason` is "gate" or "gate: details"; `question` and `answer` are the last try, for the report."""

    reason: str
    question: str | None = None
    answer: str | None = None


class Backend(Protocol):
    """Drafts questions and answers. Used inside one event loop, with several documents in flight."""

    tries: int
    """How many drafts of a question, and of an answer, are worth asking for"""

    def language(self, given: str) -> str:
        """The language that question and answer should have, for a passage or query in the language `given`."""

    def style(self, document: Document) -> Style:
        """The style that is drawn for a passage, in the language of its conversation."""

    def provenance(self, ask: Ask) -> dict[str, Any]:
        """What makes a conversation of this kind: backend, model, parameters, style, prompt hashes. No secrets."""

    async def draft(self, ask: Ask, attempt: int, spent: Spent) -> Draft:
        """Draft number `attempt`. Raises EndpointError or BudgetReached when going on is impossible."""

    async def check(
        self, document: Document | None, question: str, answer: str, language: str, spent: Spent
    ) -> str | None:
        """The reason why a second model refuses a pair, or None. document: its passage, if it has one."""

    def usage(self) -> dict[str, float]:
        """What was done so far: requests, retries, replies_from_log, cost_usd; empty where nothing is asked."""


async def rewrite(
    backend: Backend, document: Document, gates: Gates, style: Style, spent: Spent
) -> WrittenPair | Refusal:
    """One conversation about one passage, or the reason why there is none."""
    language = backend.language(document.language)
    ask = Ask("pairs" if style.pairs else "question", language, document, style)
    if style.pairs:
        return await _rewrite_at_once(backend, document, gates, ask, style, spent)
    question, reason = await _first_good(
        backend, ask, spent, lambda text: gates.refuse_question(text, document, language, style.demands)
    )
    if reason:
        return Refusal(reason, question)
    answer, reason = await _first_good(
        backend,
        Ask("answer", language, document, style, question),
        spent,
        lambda text: gates.refuse_answer(text, question, document, language, style.demands),
    )
    reason = reason or await backend.check(document, question, answer, language, spent)
    if reason:
        return Refusal(reason, question, answer)
    return WrittenPair(((_opened(style, document, question), answer),), backend.provenance(ask))


async def _rewrite_at_once(
    backend: Backend, document: Document, gates: Gates, ask: Ask, style: Style, spent: Spent
) -> WrittenPair | Refusal:
    """All pairs of a conversation from one request: they pass together or not at all."""
    reason: str | None = None
    pairs: Pairs = ()
    for attempt in range(backend.tries):
        draft = await backend.draft(ask, attempt, spent)
        pairs = tuple((normal_form(question), normal_form(answer)) for question, answer in draft.pairs)
        reason = draft.problem
        if reason is None and not style.least_pairs <= len(pairs) <= style.most_pairs:
            reason = f"wrong number of pairs: {len(pairs)}"
        reason = reason or gates.refuse_pairs(pairs, document, ask.language, style.demands)
        if reason is None or draft.final:
            break
    said = ""
    for question, answer in pairs if reason is None else ():
        asked = f"{said}{question}" if style.follow_up else question
        if reason := await backend.check(document, asked, answer, ask.language, spent):
            break
        said += f"{question}\n{answer}\n"
    if reason:
        first = pairs[0] if pairs else (None, None)
        return Refusal(reason, *first)
    (question, answer), *more = pairs
    return WrittenPair(((_opened(style, document, question), answer), *more), backend.provenance(ask))


def _opened(style: Style, document: Document, question: str) -> str:
    return question if style.first_turn == "{question}" else style.open_with(document, question)


async def reply_to(backend: Backend, query: Query, gates: Gates, spent: Spent) -> WrittenPair | Refusal:
    """The query with an answer, or the reason why there is none."""
    ask = Ask("reply", backend.language(query.language), question=query.text)
    return await _answer(backend, ask, gates, spent)


async def write_replay(backend: Backend, invitation: Invitation, gates: Gates, spent: Spent) -> WrittenPair | Refusal:
    """A request that the model makes up, and its own reply to it; or the reason why there is none."""
    language = invitation.language
    ask = Ask("replay question", language, invitation=invitation)
    question, reason = await _first_good(backend, ask, spent, lambda text: gates.refuse_question(text, None, language))
    if reason:
        return Refusal(reason, question)
    return await _answer(
        backend, Ask("replay answer", language, question=question, invitation=invitation), gates, spent
    )


async def _answer(backend: Backend, ask: Ask, gates: Gates, spent: Spent) -> WrittenPair | Refusal:
    """The answer to a question that stands by itself."""
    answer, reason = await _first_good(
        backend, ask, spent, lambda text: gates.refuse_reply(text, ask.question, ask.language)
    )
    reason = reason or await backend.check(None, ask.question, answer, ask.language, spent)
    if reason:
        return Refusal(reason, ask.question, answer)
    return WrittenPair(((ask.question, answer),), backend.provenance(ask))


async def _first_good(
    backend: Backend, ask: Ask, spent: Spent, refuse: Callable[[str], str | None]
) -> tuple[str, str | None]:
    """(text, None) of the first draft that passes, else (last text, its reason)."""
    text, reason = "", None
    for attempt in range(backend.tries):
        draft = await backend.draft(ask, attempt, spent)
        text = normal_form(draft.text)
        reason = draft.problem or refuse(text)
        if reason is None or draft.final:
            break
    return text, reason
