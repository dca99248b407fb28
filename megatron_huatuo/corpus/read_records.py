"""Files of records to items: JSON Lines and Parquet; what records leave out is completed, what is wrong is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo.corpus.account import Item
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.storage.jsonl import BadLines, read_jsonl
from megatron_huatuo.storage.records import LANGUAGES, Document, parse_document
from megatron_huatuo.text.language import detect_language

_KNOWN = ("id", "source", "language", "title", "text", "metadata")
_ROWS = 1024


def read_json_lines(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Item]:
    """Records line by line; "text" is enough, as in C4 (`.json.gz` is JSON Lines there)."""
    for line in read_jsonl(path, bad_lines):
        try:
            document = to_document(line.record, source, path, line.number)
        except DataError as error:
            bad_lines.add(path, line.number, str(error))
            continue
        yield Item(document, path, line.number, line.offset)


def read_parquet(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Item]:
    """Rows as records; the line of an item is its row, from 1. Memory is bounded by a batch of rows.

    The only function that imports pyarrow. Raises: ConfigError without it; DataError when the file is torn or has no
    column "text".
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"reading {path} needs the package pyarrow: pip install pyarrow.") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise DataError(f"no column 'text': got {file.schema_arrow.names} ({path}). Rename the column.")
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        document = to_document(row, source, path, number)
                    except DataError as error:
                        bad_lines.add(path, number, str(error))
                        continue
                    yield Item(document, path, number)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"file is torn or no Parquet after row {number}: {error} ({path}). Copy it again.") from error


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
