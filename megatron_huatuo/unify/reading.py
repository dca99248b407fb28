"""Documents to unify, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from megatron_huatuo.errors import BlankTextError, DataError
from megatron_huatuo.storage.jsonl import BadLines, open_binary, read_jsonl
from megatron_huatuo.storage.records import parse_document
from megatron_huatuo.unify.task import Task


def read_documents(files: Iterable[str], bad_lines: BadLines) -> Iterator[Task]:
    """Documents of all files in order; one without `metadata.origin` has its place in these files as its origin."""
    for path in files:
        for line in read_jsonl(path, bad_lines):
            try:
                document = parse_document(line.record, f"{path}:{line.number}")
                if not document.text.strip():
                    raise BlankTextError(f"blank 'text': need text ({path}:{line.number})")
            except DataError as error:
                bad_lines.add_error(path, line.number, error)
                continue
            origin = (document.metadata or {}).get("origin")
            if not isinstance(origin, dict):
                origin = {"document": document.id, "file": path, "line": line.number, "offset": line.offset}
            yield Task(document.id, document.source, origin, document)


def count_lines(files: Iterable[str]) -> int:
    """Lines of all files, for progress bars: cheap, and no promise about what they hold."""
    count = 0
    for path in files:
        with open_binary(path) as handle:
            while chunk := handle.read(1 << 20):
                count += chunk.count(b"\n")
    return count
