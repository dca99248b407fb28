"""Raw text: each record's text as it is, every token trained on, eos at the end.

Invariant: nothing is added to a text but its eos, and nothing is taken away. A text that is longer than a row is cut where
rows are planned (`storage.targets.DocumentsInRows`), so one index serves rows of any length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from megatron_huatuo.errors import BlankTextError, DataError
from megatron_huatuo.index.encoded import EncodedDocuments, RecordFormat, join_documents
from megatron_huatuo.index.tokenizer import Tokenizer
from megatron_huatuo.storage.records import DOCUMENT_KEYS, note_unread
from megatron_huatuo.storage.targets import TEXT_RULE, TRAINED

_READ = DOCUMENT_KEYS - {"title"}  # a title is not part of the text


class RawText(NamedTuple):
    """A text to be learnt as it is."""

    text: str
    source: str | None


class TextFormat(RecordFormat):
    """Documents of a corpus, and other records with a 'text', with a tokenizer."""

    name = TEXT_RULE.chat_format

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def parse(self, raw: Any, where: str, notes: Counter[str] | None = None) -> list[RawText]:
        if not isinstance(raw, dict):
            raise DataError(f"wrong record: got {type(raw).__name__}, need an object ({where})")
        text, source = raw.get("text"), raw.get("source")
        if not isinstance(text, str):
            got = "nothing" if "text" not in raw else type(text).__name__
            has_turns = not {"conversations", "messages"}.isdisjoint(raw)
            hint = "; it has turns, index it without --format text" if has_turns else ""
            raise DataError(f"record without 'text': got {got}, need text{hint} ({where})")
        if not text.strip():
            raise BlankTextError(f"blank 'text': need text ({where})")
        if notes is not None:
            note_unread(raw, _READ, notes)
        return [RawText(text, source if isinstance(source, str) else None)]

    def texts_of(self, record: RawText) -> tuple[str]:
        return (record.text,)

    def encode(self, records: Sequence[RawText]) -> EncodedDocuments:
        eos = np.array([self._tokenizer.eos_id], np.int32)
        ids = self._tokenizer.encode_batch([record.text for record in records]) if records else []
        filled = [number for number, tokens in enumerate(ids) if len(tokens)]
        kept = [number for number in filled if self._tokenizer.eos_id not in ids[number]]
        found = join_documents([[(ids[number], TRAINED), (eos, TRAINED)] for number in kept], np.array(kept, np.int64))
        for reason, number in (
            ("text without a token", len(ids) - len(filled)),
            ("text yields the end-of-document id", len(filled) - len(kept)),
        ):
            if number:
                found.dropped[reason] = number
        return found
