"""What a backend is: something that asks a question about a passage, and answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from megatron_huatuo.storage.records import Document
from megatron_huatuo.unify.task import Query


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

    def describe(self) -> dict[str, Any]:
        """What decides the output besides the documents: name, model, parameters, prompt hashes. No secrets."""

    def provenance(self, language: str) -> dict[str, Any]:
        """What makes a pair in this language, in the words of `describe`."""

    async def draft_question(self, document: Document, attempt: int) -> Draft:
        """Draft number `attempt` of a question. Raises EndpointError or BudgetReached when going on is impossible."""

    async def draft_answer(self, document: Document, question: str, attempt: int) -> Draft:
        """Draft number `attempt` of the answer. Raises as `draft_question`."""

    async def draft_reply(self, query: Query, attempt: int) -> Draft:
        """Draft number `attempt` of the answer to a query without a passage. Raises as `draft_question`."""

    def ledger(self) -> dict[str, Any]:
        """Requests, tokens and money so far; the content of `ledger.json`."""

    def spending(self) -> dict[str, str]:
        """What a progress bar shows."""

    async def close(self) -> None:
        """Free what the backend holds."""
