"""What flows through the steps of curation: documents with their place, and rejections with a reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from megatron_huatuo.storage.records import Document


@dataclass(frozen=True)
class Item:
    """A document, later a passage, and where it comes from.

    line: from 1; the number of the record in formats without lines. offset: in the uncompressed file, None where a
    format has none. parent: id of the document that a passage is part `part` of `parts` of.
    """

    document: Document
    file: str
    line: int
    offset: int | None = None
    parent: str | None = None
    part: int = 1
    parts: int = 1

    def with_text(self, text: str) -> Item:
        """The same item with another text."""
        return replace(self, document=replace(self.document, text=text))

    def to_document(self) -> Document:
        """The Document record, its origin among the metadata."""
        origin: dict[str, Any] = {"document": self.parent or self.document.id, "file": self.file, "line": self.line}
        if self.offset is not None:
            origin["offset"] = self.offset
        if self.parts > 1:
            origin.update(part=self.part, parts=self.parts)
        return replace(self.document, metadata={**(self.document.metadata or {}), "origin": origin})

    def reject(self, reason: str) -> Rejected:
        """The rejection of this item."""
        return Rejected(self.document.id, reason, self.file, self.line, self.document.source)


class Rejected(NamedTuple):
    """What was dropped, why, and where it stood. `id` and `source` are None for a line that is no record."""

    id: str | None
    reason: str
    file: str
    line: int
    source: str | None = None

    def to_record(self) -> dict[str, Any]:
        """The line of `rejected.jsonl`."""
        return {"id": self.id, "reason": self.reason, "file": self.file, "line": self.line}
