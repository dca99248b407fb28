"""One item of tokenising work: neighbouring records of one file in, documents and counts out.

Invariant: chunks are cut by the input alone, so whoever encodes them, the results in order are the same. Every record of
a chunk is a document, a bad line, of another source, or dropped for a counted reason.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_huatuo.errors import DataError
from megatron_huatuo.index import blocks
from megatron_huatuo.index.blocks import Block, lines_of, split_blocks
from megatron_huatuo.index.encoded import EncodedDocuments, Record, RecordFormat
from megatron_huatuo.index.formats.chat_format import ANSWER_TAG, QUESTION_TAG
from megatron_huatuo.index.formats.format_table import FormatSettings, open_format
from megatron_huatuo.index.pair_encoder import PairEncoder
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.storage.jsonl import BadLine, BadLines, RawLine, parse_lines
from megatron_huatuo.storage.record_files import is_json_lines, read_records

# Role tags, and invisible or lost characters (NUL, zero-width, bidi, byte-order mark, U+FFFD), inside a value: kept,
# encoded as they are, and counted. Removing characters is curation's decision.
_ROLE_TAG = re.compile(f"{QUESTION_TAG}|{ANSWER_TAG.strip()}")
_UNUSUAL = ((0x0, 0x0), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x2069), (0xFEFF, 0xFEFF), (0xFFFD, 0xFFFD))


@dataclass(frozen=True)
class Chunk:
    """Records of one file: a block of lines, or, where lines are not records, records and the file's bad ones."""

    path: str
    file: int  # position among the inputs
    block: Block | None
    records: list[Any]
    first: int  # number of the first record, from 1
    bad: list[BadLine]
    tolerated: Counter[str]
    num_bytes: int
    check_all: bool  # compare every document with the served template, not only the first


@dataclass(frozen=True)
class EncodedChunk:
    """Documents of a chunk with its bad lines, in order.

    origins: int64 [num_documents, 2], (file, line) of each; counts: "conversations" (records read, bad ones not),
    "other_source", "template_checked", "template_mismatched", "unknown_tokens", the format's own counts, and records with
    "role_tag_in_text", "unusual_character".
    """

    encoded: EncodedDocuments
    origins: NDArray[np.int64]
    bad: list[BadLine]
    tolerated: Counter[str]
    counts: Counter[str]
    num_bytes: int


def split_inputs(paths: Iterable[str], form: RecordFormat) -> Iterator[Chunk]:
    """Cut files into chunks of about CHUNK_BYTES, in order. Raises DataError when a file cannot be read."""
    is_first = True
    for file, path in enumerate(paths):
        for chunk in _split_lines(path, file) if is_json_lines(path) else _split_records(path, file, form):
            yield replace(chunk, check_all=is_first)
            is_first = False


def _split_lines(path: str, file: int) -> Iterator[Chunk]:
    for block in split_blocks(path):
        yield Chunk(path, file, block, [], 0, [], Counter(), len(block.data or b""), False)


def _split_records(path: str, file: int, form: RecordFormat) -> Iterator[Chunk]:
    """A file of another format, read whole; its bad records go with the first chunk."""
    bad = BadLines(max_bad_lines=sys.maxsize)
    records = list(read_records(path, functools.partial(form.parse, notes=bad.tolerated), bad))
    sizes = [sum(map(len, form.texts_of(record))) for record in records]
    start, end = 0, 0
    while start == 0 or start < len(records):
        num_bytes = 0
        while end < len(records) and num_bytes < blocks.CHUNK_BYTES:
            num_bytes += sizes[end]
            end += 1
        faults = ([], Counter()) if start else (bad.lines, bad.tolerated)
        yield Chunk(path, file, None, records[start:end], start + 1, *faults, num_bytes, False)
        start = max(end, 1)


def encode_chunk(
    chunk: Chunk, *, tokenizer_path: str, pairs: PairEncoder | None, source: str | None, settings: FormatSettings
) -> EncodedChunk:
    """Parse, select and encode one chunk. Runs in a worker, which opens tokenizer and format once."""
    tokenizer, form = _open_once(tokenizer_path, pairs, settings)
    bad = BadLines(sys.maxsize, list(chunk.bad), Counter(chunk.tolerated))
    read = list(_parse(chunk, form, bad))
    selected = [(line, one) for line, one in read if source is None or one.source == source]
    lines, chosen = [line for line, _ in selected], [one for _, one in selected]
    encoded = form.encode(chosen)
    for position, reason in encoded.refused:
        bad.add(chunk.path, lines[position], reason)
    checked, mismatched = form.count_mismatches(chosen, encoded, None if chunk.check_all else 1)
    counts = Counter(
        conversations=len(read),
        other_source=len(read) - len(chosen),
        template_checked=checked,
        template_mismatched=mismatched,
        unknown_tokens=0 if tokenizer.unk_id is None else int((encoded.tokens == tokenizer.unk_id).sum()),
        **_count_remarkable([list(form.texts_of(one)) for one in chosen]),
    )
    counts.update(encoded.counts)
    origins = np.array([(chunk.file, lines[kept]) for kept in encoded.kept.tolist()], dtype=np.int64).reshape(-1, 2)
    return EncodedChunk(encoded, origins, sorted(bad.lines, key=_line_of), bad.tolerated, counts, chunk.num_bytes)


def _line_of(bad: BadLine) -> int:
    return bad.line


def _count_remarkable(records: list[list[str]]) -> dict[str, int]:
    """Records with a remarkable text, by what it is; one search over all tells the usual case."""
    tests = {"role_tag_in_text": lambda text: bool(_ROLE_TAG.search(text)), "unusual_character": _has_unusual_character}
    joined = "\n".join([text for texts in records for text in texts])
    return {
        name: sum(any(map(test, texts)) for texts in records) if test(joined) else 0 for name, test in tests.items()
    }


def _has_unusual_character(text: str) -> bool:
    """Whether a character of _UNUSUAL is in the text; 0.3 ns a character and range, less than half of a regex's time."""
    codes = np.frombuffer(text.encode("utf-16-le"), dtype="<u2")  # surrogate pairs fall in none of the ranges
    return any(bool((codes - np.uint16(first) <= last - first).any()) for first, last in _UNUSUAL)


@functools.lru_cache(maxsize=1)
def _open_once(path: str, pairs: PairEncoder | None, settings: FormatSettings) -> tuple[Tokenizer, RecordFormat]:
    tokenizer = load_tokenizer(path)
    tokenizer.pairs = pairs
    return tokenizer, open_format(settings, tokenizer)


def _parse(chunk: Chunk, form: RecordFormat, bad: BadLines) -> Iterator[tuple[int, Record]]:
    """(line, record) of each good record."""
    if chunk.block is None:
        yield from enumerate(chunk.records, start=chunk.first)
        return
    for line in lines_of(chunk.block):
        # The first line also tells of the file's encoding.
        where = f"{chunk.path}:{line.number}"
        found = None if line.number == 1 else _parse_faultless(line.raw, form, where, bad.tolerated)
        for record in _parse_with_care(line, form, chunk.path, bad) if found is None else found:
            yield line.number, record


def _parse_faultless(raw: bytes | None, form: RecordFormat, where: str, notes: Counter[str]) -> list[Record] | None:
    """What `_parse_with_care` gives for a line that is right, in half the time; None for any other line."""
    if raw is None or raw.endswith(b"\r\n"):
        return None
    try:
        record = orjson.loads(raw)
        return form.parse(record, where, notes) if isinstance(record, dict) else None
    except ValueError:
        return None


def _parse_with_care(raw: RawLine, form: RecordFormat, path: str, bad: BadLines) -> list[Record]:
    for line in parse_lines([raw], path, bad):
        try:
            return form.parse(line.record, f"{path}:{line.number}", bad.tolerated)
        except DataError as error:
            bad.add_error(path, line.number, error)
    return []
