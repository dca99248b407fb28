"""One raw document to its passages.

Invariant: every document ends as at least one passage or one rejection, and a rejection has exactly one reason.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from megatron_huatuo.corpus.readers import Located
from megatron_huatuo.corpus.segment import segment
from megatron_huatuo.corpus.settings import CurationSettings
from megatron_huatuo.storage.records import LANGUAGES, Document
from megatron_huatuo.text.language import count_size
from megatron_huatuo.text.normalise import REPLACEMENT_CHARACTER, normalise


class Rejected(NamedTuple):
    """What was dropped, why, and where it stood. `id` is None for a line that is no record."""

    id: str | None
    reason: str
    file: str
    line: int
    source: str | None

    def to_record(self) -> dict[str, Any]:
        """The line of `rejected.jsonl`."""
        return {"id": self.id, "reason": self.reason, "file": self.file, "line": self.line}


def make_passages(located: Located, settings: CurationSettings, repairs: Counter[str]) -> Iterator[Document | Rejected]:
    """Clean one document and cut it into passages.

    repairs: receives the counts of `normalise`.
    """
    document = located.document
    text = normalise(document.text, repairs)
    if not text:
        yield _reject(located, document.id, "blank text")
        return
    if document.language not in LANGUAGES:
        yield _reject(located, document.id, "language")
        return
    texts = segment(text, document.language, settings.max_size(document.language))
    for index, passage in enumerate(texts):
        name = document.id if len(texts) == 1 else f"{document.id}#{index + 1}"
        reason = _refuse(passage, document.language, settings)
        if reason:
            yield _reject(located, name, reason)
        else:
            yield _to_passage(located, name, passage, index, len(texts))


def _refuse(passage: str, language: str, settings: CurationSettings) -> str | None:
    """Why a passage is not fit for use, or None."""
    if REPLACEMENT_CHARACTER in passage:
        return "damaged text"
    if count_size(passage, language) < settings.min_size(language):
        return "too short"
    return None


def _to_passage(located: Located, name: str, text: str, index: int, number: int) -> Document:
    document = located.document
    title = document.title and normalise(document.title).replace("\n", " ")
    origin: dict[str, Any] = {
        "document": document.id, "file": located.file, "line": located.line, "offset": located.offset,
    }  # fmt: skip
    if number > 1:
        origin.update(part=index + 1, parts=number)
    return dataclasses.replace(
        document, id=name, title=title or None, text=text, metadata={**(document.metadata or {}), "origin": origin}
    )


def _reject(located: Located, name: str, reason: str) -> Rejected:
    return Rejected(name, reason, located.file, located.line, located.document.source)
