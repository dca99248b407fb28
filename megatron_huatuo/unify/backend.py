"""What a backend is: something that asks a question about a passage, and answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from megatron_huatuo.storage.records import Document
from megatron_huatuo.unify.task import Query

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
