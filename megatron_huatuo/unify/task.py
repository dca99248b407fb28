"""What there is to do: rewrite a passage, answer a query, or take over a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_huatuo.storage.records import Conversation, Document


@dataclass(frozen=True)
class Query:
    """A question that nobody has answered yet."""

    text: str
    language: str


@dataclass(frozen=True)
class Task:
    """One piece of work and where it comes from. origin: at least file and line."""

    id: str
    source: str
    origin: Mapping[str, Any]
    work: Document | Query | Conversation

    def shown(self) -> str:
        """The text that a person compares the result with."""
        if isinstance(self.work, Document):
            return f"{self.work.title or ''}\n{self.work.text}".strip()
        if isinstance(self.work, Query):
            return self.work.text
        return "\n".join(f"{turn.speaker}: {turn.value}" for turn in self.work.turns)
