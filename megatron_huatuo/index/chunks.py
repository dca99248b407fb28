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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.errors import DataError
from megatron_huatuo.index.chat_format import (
    ANSWER_TAG,
    QUESTION_TAG,
    EncodedConversations,
    count_template_mismatches,
    encode_conversations,
)
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.storage.jsonl import BadLine, BadLines, RawLine, parse_lines, read_records, split_lines
from megatron_huatuo.storage.records import Conversation, parse_conversations

# About a tenth of a second of tokenising: long enough to forget the message's cost, short enough that none waits.
CHUNK_BYTES = 256 << 10
# Comparing stored ids with those of the whole text costs a second encoding: all of the first chunk, then a sample.
_CHECK_EVERY = 64

# Invisible or lost characters. Removing them is curation's decision; here they are kept, encoded and counted.
_UNUSUAL = re.compile("[\x00\ufffd\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_ROLE_TAGS = (QUESTION_TAG, ANSWER_TAG.strip())


@dataclass(frozen=True)
class Chunk:
    """Records of one file: raw lines, or, from a `.json` file, conversations with the bad records before them."""

    path: str
    file: int  # position among the inputs
    first: int  # number of the first record, from 1
    records: list[RawLine] | list[Conversation]
    bad: list[BadLine]
    num_bytes: int
    check_every: int


@dataclass(frozen=True)
class EncodedChunk:
    """Documents of a chunk with its bad lines, in order.

    origins: int64 [num_documents, 2], (file, line) of each; counts: "conversations" (read, bad ones not), "other_source", "tags_encoded_apart", "template_checked",
    "template_mismatched", "unknown_tokens", and conversations with "role_tag_in_text", "unusual_character".
    """

    encoded: EncodedConversations
    origins: NDArray[np.int64]
    bad: list[BadLine]
    tolerated: Counter[str]
    counts: Counter[str]
    num_bytes: int


def split_inputs(paths: Iterable[str]) -> Iterator[Chunk]:
    """Cut files into chunks of about CHUNK_BYTES, in order. Raises DataError when a file cannot be read."""
    check_every = 1
    for file, path in enumerate(paths):
        first = 1
        bad = BadLines(max_bad_lines=sys.maxsize)
        records: Iterable[RawLine] | Iterable[Conversation]
        if Path(path).suffix == ".json":
            records = list(read_records(path, parse_conversations, bad))
        else:
            records = split_lines(path)
        for group, num_bytes in _gather(records):
            yield Chunk(path, file, first, group, bad.lines, num_bytes, check_every)
            first, bad, check_every = first + len(group), BadLines(), _CHECK_EVERY
        if bad.lines:
            yield Chunk(path, file, first, [], bad.lines, 0, _CHECK_EVERY)


def _gather(records: Iterable[Any]) -> Iterator[tuple[list[Any], int]]:
    """(records, their bytes) of each chunk."""
    group: list[Any] = []
    num_bytes = 0
    for record in records:
        group.append(record)
        num_bytes += _size(record)
        if num_bytes >= CHUNK_BYTES:
            yield group, num_bytes
            group, num_bytes = [], 0
    if group:
        yield group, num_bytes


def _size(record: RawLine | Conversation) -> int:
    if isinstance(record, Conversation):
        return sum(len(turn.value) for turn in record.turns)
    return len(record.raw or b"")


def encode_chunk(chunk: Chunk, *, tokenizer_path: str, source: str | None) -> EncodedChunk:
    """Parse, select and encode one chunk. Runs in a worker, which opens the tokenizer once."""
    tokenizer = _open_once(tokenizer_path)
    bad = BadLines(max_bad_lines=sys.maxsize, lines=list(chunk.bad))
    read = list(_parse(chunk, bad))
    selected = [(line, one) for line, one in read if source is None or one.source == source]
    lines, chosen = [line for line, _ in selected], [one for _, one in selected]
    encoded = encode_conversations(chosen, tokenizer)
    checked, mismatched = count_template_mismatches(chosen, encoded, tokenizer, chunk.check_every)
    counts = Counter(
        conversations=len(read),
        other_source=len(read) - len(chosen),
        tags_encoded_apart=encoded.tags_apart,
        template_checked=checked,
        template_mismatched=mismatched,
        unknown_tokens=0 if tokenizer.unk_id is None else int((encoded.tokens == tokenizer.unk_id).sum()),
        role_tag_in_text=sum(any(tag in turn.value for turn in one.turns for tag in _ROLE_TAGS) for one in chosen),
        unusual_character=sum(any(_UNUSUAL.search(turn.value) for turn in one.turns) for one in chosen),
    )
    origins = np.array([(chunk.file, lines[kept]) for kept in encoded.kept.tolist()], dtype=np.int64).reshape(-1, 2)
    return EncodedChunk(encoded, origins, bad.lines, bad.tolerated, counts, chunk.num_bytes)


@functools.lru_cache(maxsize=1)
def _open_once(path: str) -> Tokenizer:
    return load_tokenizer(path)


def _parse(chunk: Chunk, bad: BadLines) -> Iterator[tuple[int, Conversation]]:
    """(line, conversation) of each good record."""
    if chunk.records and isinstance(chunk.records[0], Conversation):
        yield from enumerate(cast("list[Conversation]", chunk.records), start=chunk.first)
        return
    for line in parse_lines(cast("list[RawLine]", chunk.records), chunk.path, bad):
        try:
            conversations = parse_conversations(line.record, f"{chunk.path}:{line.number}")
        except DataError as error:
            bad.add(chunk.path, line.number, str(error))
            continue
        yield from ((line.number, conversation) for conversation in conversations)
