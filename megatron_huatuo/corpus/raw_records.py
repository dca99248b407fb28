"""Raw records to documents: what sources leave out is completed, what is wrong is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.records import LANGUAGES, Document, parse_document
from megatron_huatuo.text.language import detect_language

_KNOWN = ("id", "source", "language", "title", "text", "metadata")


def to_document(record: Mapping[str, Any], source: str | None, path: str, line: int) -> Document:
    """A document from a record with at least "text".

    source: replaces the record's own when given. A missing id becomes FILE:LINE, a missing language is detected (it may
    then be "other"), further keys of scalar values (C4's "url" and "timestamp") go to the metadata.
    Raises: DataError naming key and place.
    """
    where = f"{path}:{line}"
    completed = {name: record[name] for name in _KNOWN if name in record}
    completed.setdefault("id", f"{Path(path).name}:{line}")
    if source is not None:
        completed["source"] = source
    elif "source" not in record:
        raise DataError(f"no source: the record has no 'source' ({where}). Name it with --source.")
    extra = {
        name: value for name, value in record.items() if name not in _KNOWN and isinstance(value, str | int | float)
    }
    if extra and isinstance(completed.get("metadata", {}), dict):
        completed["metadata"] = {**extra, **completed.get("metadata", {})}
    if record.get("language") is not None:
        return parse_document(completed, where)
    document = parse_document({**completed, "language": LANGUAGES[0]}, where)
    return dataclasses.replace(document, language=detect_language(document.text))
