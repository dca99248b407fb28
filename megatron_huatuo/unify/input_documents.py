"""Documents to unify, each with its origin; and the shards that their files are cut into.

Invariant: the cut depends on the files alone, so shards of a run that was killed are the same when it goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from megatron_huatuo.errors import BlankTextError, DataError
from megatron_huatuo.storage.jsonl import BadLines, parse_lines, split_lines
from megatron_huatuo.storage.records import Conversation, Document, parse_document
from megatron_huatuo.storage.text_files import READ_ERRORS, base_suffix, open_binary

_CHUNK_BYTES = 1 << 20
_OTHER_FORMATS = (".csv", ".tsv", ".parquet", ".xml", ".nxml", ".txt")


@dataclass(frozen=True)
class Query:
    """A question that nobody has answered yet."""

    text: str
    language: str


@dataclass(frozen=True)
class Invitation:
    """What a model is invited to write of itself: about a topic, in a form; seed: of the request."""

    language: str
    topic: str
    form: str
    seed: int


@dataclass(frozen=True)
class Task:
    """One piece of work and where it comes from. origin: at least file and line."""

    id: str
    source: str
    origin: Mapping[str, Any]
    work: Document | Query | Conversation | Invitation

    def shown(self) -> str:
        """The text that a person compares the result with."""
        if isinstance(self.work, Document):
            return f"{self.work.title or ''}\n{self.work.text}".strip()
        if isinstance(self.work, Query):
            return self.work.text
        if isinstance(self.work, Invitation):
            return f"{self.work.topic}: {self.work.form}"
        return "\n".join(f"{turn.speaker}: {turn.value}" for turn in self.work.turns)


class Shard(NamedTuple):
    """Neighbouring lines of one file, or items of no file: what one task of an executor works on."""

    file: str
    skipped_lines: int
    skipped_bytes: int
    lines: int


def refuse_other_formats(files: Iterable[str]) -> None:
    """Raises: DataError for a file that is not JSON Lines of Documents, before its bytes are taken for bad lines."""
    for path in files:
        is_lines = base_suffix(path) not in _OTHER_FORMATS
        if is_lines:
            with open_binary(path) as handle, contextlib.suppress(*READ_ERRORS):
                is_lines = not handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        if not is_lines:
            raise DataError(
                f"documents are not JSON Lines: got {path}. Make them with tools/curate_corpus.py --input {path}, or add --pairs "
                "if it holds questions and answers."
            )


def cut(file: str, lines_a_shard: int) -> list[Shard]:
    """The shards of a file, in order; an empty file is one shard. One pass over the bytes, without parsing them."""
    starts, lines, size, last = [(0, 0)], 0, 0, b"\n"
    with open_binary(file) as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            for index in range(lines_a_shard - 1 - lines % lines_a_shard, len(ends), lines_a_shard):
                starts.append((lines + index + 1, size + int(ends[index]) + 1))
            lines, size, last = lines + len(ends), size + len(chunk), chunk[-1:]
    if last != b"\n":
        lines += 1
    if len(starts) > 1 and starts[-1][1] == size:
        starts.pop()
    stops = [line for line, _ in starts[1:]] + [lines]
    return [Shard(file, line, offset, stop - line) for (line, offset), stop in zip(starts, stops, strict=True)]


def cut_items(number: int, items_per_shard: int) -> list[Shard]:
    """The shards of so many items that no file holds."""
    starts = range(0, number, items_per_shard)
    return [Shard("", start, 0, min(items_per_shard, number - start)) for start in starts]


def read_documents(shard: Shard, bad_lines: BadLines) -> Iterator[Task]:
    """Documents of a shard in order; one without `metadata.origin` has its place in the file as its origin."""
    lines = islice(split_lines(shard.file, shard.skipped_lines, shard.skipped_bytes), shard.lines)
    for line in parse_lines(lines, shard.file, bad_lines):
        try:
            document = parse_document(line.record, f"{shard.file}:{line.number}", bad_lines.tolerated)
            if not document.text.strip():
                raise BlankTextError(f"blank 'text': need text ({shard.file}:{line.number})")
        except DataError as error:
            bad_lines.add_error(shard.file, line.number, error)
            continue
        origin = (document.metadata or {}).get("origin")
        if not isinstance(origin, dict):
            origin = {"document": document.id, "file": shard.file, "line": line.number, "offset": line.offset}
        yield Task(document.id, document.source, origin, document)
