"""Parquet files with at least a column "text". The only file that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_huatuo.corpus.item import Item
from megatron_huatuo.corpus.raw_records import to_document
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.storage.jsonl import BadLines

_ROWS = 1024


def read_parquet(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Item]:
    """Rows as records; the line of an item is its row, from 1. Memory is bounded by a batch of rows.

    Raises: ConfigError without pyarrow; DataError when the file is torn or has no column "text".
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
