"""Documents to unify, each with its origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines, open_binary, read_jsonl
from megatron_huatuo.storage.records import Document, parse_document


def read_documents(files: Iterable[str], bad_lines: BadLines) -> Iterator[Document]:
    """Documents of all files in order; one without `metadata.origin` gets its place in these files as its origin."""
    for path in files:
        for line in read_jsonl(path, bad_lines):
            try:
                document = parse_document(line.record, f"{path}:{line.number}")
                if not document.text.strip():
                    raise DataError(f"blank 'text': need text ({path}:{line.number})")
            except DataError as error:
                bad_lines.add(path, line.number, str(error))
                continue
            metadata = dict(document.metadata or {})
            metadata.setdefault("origin", {"file": path, "line": line.number, "offset": line.offset})
            yield dataclasses.replace(document, metadata=metadata)


def count_lines(files: Iterable[str]) -> int:
    """Lines of all files, for progress bars: cheap, and no promise about what they hold."""
    count = 0
    for path in files:
        with open_binary(path) as handle:
            while chunk := handle.read(1 << 20):
                count += chunk.count(b"\n")
    return count
