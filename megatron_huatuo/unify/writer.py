"""The two steps of the recipe: a question that the passage answers, then the answer; each tried until a gate opens.

Invariant: a pair that leaves here has passed every gate; a refusal carries the reason of the last try.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from megatron_huatuo.storage.records import Document
from megatron_huatuo.text.normal_form import normal_form
from megatron_huatuo.unify.gates import Gates
from megatron_huatuo.unify.input_documents import Query

ENDPOINT_FAILED = "endpoint failed"
"""The reason of documents that no request could be answered for; they are asked again by a later run."""


@dataclass(frozen=True)
class Draft:
    """One text of a backend. `problem`: why it is of no use, as a reason for the report; `final`: so would others be."""

    text: str
    problem: str | None = None
    final: bool = False


@dataclass(frozen=True)
class Pair:
    """A question and its answer; `provenance` says how the backend made them."""

    question: str
    answer: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """No pair: `reason` is "gate" or "gate: details"; `question` and `answer` are the last try, for the report."""

    reason: str
    question: str | None = None
    answer: str | None = None


class Backend(Protocol):
    """Drafts questions and answers. Used inside one event loop, with several documents in flight."""

    tries: int
    """How many drafts of a question, and of an answer, are worth asking for"""

    def language(self, given: str) -> str:
        """The language that question and answer should have, for a passage or query in the language `given`."""

    def provenance(self, language: str) -> dict[str, Any]:
        """What makes a pair in this language: backend, model, parameters, prompt hashes. No secrets."""

    async def draft_question(self, document: Document, attempt: int) -> Draft:
        """Draft number `attempt` of a question. Raises EndpointError or BudgetReached when going on is impossible."""

    async def draft_answer(self, document: Document, question: str, attempt: int) -> Draft:
        """Draft number `attempt` of the answer. Raises as `draft_question`."""

    async def draft_reply(self, query: Query, attempt: int) -> Draft:
        """Draft number `attempt` of the answer to a query without a passage. Raises as `draft_question`."""

    async def check(self, document: Document | None, question: str, answer: str, language: str) -> str | None:
        """The reason why a second model refuses a pair, or None. document: its passage, if it has one."""

    def usage(self) -> dict[str, float]:
        """What was done so far: requests, retries, replies_from_log, cost_usd; empty where nothing is asked."""


async def rewrite(backend: Backend, document: Document, gates: Gates) -> Pair | Refusal:
    """One pair for one passage, or the reason why there is none."""
    language = backend.language(document.language)
    question, reason = await _first_good(
        backend.tries,
        lambda attempt: backend.draft_question(document, attempt),
        lambda text: gates.refuse_question(text, document, language),
    )
    if reason:
        return Refusal(reason, question)
    answer, reason = await _first_good(
        backend.tries,
        lambda attempt: backend.draft_answer(document, question, attempt),
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
        lambda text: gates.refuse_reply(text, query.text, language),
    )
    reason = reason or await backend.check(None, query.text, answer, language)
    if reason:
        return Refusal(reason, query.text, answer)
    return Pair(query.text, answer, backend.provenance(language))


async def _first_good(
    tries: int,
    draft: Callable[[int], Awaitable[Draft]],
    refuse: Callable[[str], str | None],
) -> tuple[str, str | None]:
    """(text, None) of the first draft that passes, else (last text, its reason)."""
    text, reason = "", None
    for attempt in range(tries):
        drafted = await draft(attempt)
        text = normal_form(drafted.text)
        reason = drafted.problem or refuse(text)
        if reason is None or drafted.final:
            break
    return text, reason
