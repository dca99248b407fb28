"""What a backend is: one passage in, one pair or one refusal out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from megatron_huatuo.storage.records import Document


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
    """Turns documents into pairs. Used inside one event loop, with several documents in flight."""

    def describe(self) -> dict[str, Any]:
        """What decides the output besides the documents: name, model, parameters, prompt hashes. No secrets."""

    async def rewrite(self, document: Document) -> Pair | Refusal:
        """One pair for one passage. Raises EndpointError when going on makes no sense."""

    def ledger(self) -> dict[str, Any]:
        """Requests, tokens and money so far; the content of `ledger.json`."""

    async def close(self) -> None:
        """Free what the backend holds."""
