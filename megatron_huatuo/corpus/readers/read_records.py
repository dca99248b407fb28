"""Files of records to items; what records leave out is completed, what is wrong is refused.

Invariant: every key of a record is read, kept as metadata and counted, or carries nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo.corpus.account import Item
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.record_files import read_raw_records
from megatron_huatuo.storage.records import DOCUMENT_KEYS, LANGUAGES, Document, carries_nothing, parse_document
from megatron_huatuo.text.language import detect_language


def read_documents_of(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Item]:
    """The documents of a file of records; a record may be a bare text, and "text" alone is enough, as in C4.

    The line of an item is the record's number where the format has no lines.
    """
    for number, offset, content in read_raw_records(path, bad_lines):
        try:
            document = to_document(content, source, path, number, bad_lines.tolerated)
        except DataError as error:
            bad_lines.add(path, number, str(error))
            continue
        yield Item(document, path, number, offset)


def to_document(raw: Any, source: str | None, path: str, line: int, notes: Counter[str] | None = None) -> Document:
    """A document from a record with at least "text", or from a bare text.

    source: replaces the record's own when given. A missing id becomes FILE:LINE, a missing language is detected (it may
    then be "other"), further keys (C4's "url" and "timestamp") go to the metadata as they are.
    notes: counts these, by name. Raises: DataError naming key and place.
    """
    where = f"{path}:{line}"
    record: Mapping[str, Any] = {"text": raw} if isinstance(raw, str) else raw
    if not isinstance(record, dict):
        raise DataError(f"wrong record: got {type(raw).__name__}, need an object or a text ({where})")
    if "text" not in record:
        keys = sorted(map(str, record))[:9]
        raise DataError(f"wrong value of 'text': got nothing, need one of the keys {keys} to be renamed ({where})")
    completed = {name: record[name] for name in DOCUMENT_KEYS if not carries_nothing(record.get(name))}
    completed["text"] = record["text"]
    completed.setdefault("id", f"{Path(path).name}:{line}")
    if source is not None:
        completed["source"] = source
    elif "source" not in completed:
        raise DataError(f"no source: the record has no 'source' ({where}). Name it with --source.")
    extra = {name: value for name, value in record.items() if name not in DOCUMENT_KEYS and not carries_nothing(value)}
    if extra and isinstance(completed.get("metadata", {}), dict):
        completed["metadata"] = {**extra, **completed.get("metadata", {})}
    if "language" in completed:
        document = parse_document(completed, where)
    else:
        document = parse_document({**completed, "language": LANGUAGES[0]}, where)
        document = dataclasses.replace(document, language=detect_language(document.text))
    if notes is not None:
        notes.update(f"kept as metadata: {name}" for name in extra)
    return document
