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

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_huatuo.errors import DataError
from megatron_huatuo.index import blocks
from megatron_huatuo.index.blocks import Block, lines_of, split_blocks
from megatron_huatuo.index.chat_format import (
    ANSWER_TAG,
    QUESTION_TAG,
    EncodedConversations,
    count_template_mismatches,
    encode_conversations,
)
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.storage.jsonl import BadLine, BadLines, RawLine, parse_lines
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.record_files import is_json_lines, read_records
from megatron_huatuo.storage.records import Conversation

# Role tags, and invisible or lost characters (NUL, zero-width, bidi, byte-order mark, U+FFFD), inside a value: kept,
# encoded as they are, and counted. Removing characters is curation's decision.
_ROLE_TAG = re.compile(f"{QUESTION_TAG}|{ANSWER_TAG.strip()}")
_UNUSUAL = ((0x0, 0x0), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x2069), (0xFEFF, 0xFEFF), (0xFFFD, 0xFFFD))


@dataclass(frozen=True)
class Chunk:
    """Records of one file: a block of lines, or, where lines are no records, conversations and the file's bad records."""

    path: str
    file: int  # position among the inputs
    block: Block | None
    conversations: list[Conversation]
    first: int  # number of the first conversation, from 1
    bad: list[BadLine]
    tolerated: Counter[str]
    num_bytes: int
    check_all: bool  # compare every document with the served template, not only the first


@dataclass(frozen=True)
class EncodedChunk:
    """Documents of a chunk with its bad lines, in order.

    origins: int64 [num_documents, 2], (file, line) of each; counts: "conversations" (read, bad ones not), "other_source",
    "tags_encoded_apart", "template_checked", "template_mismatched", "unknown_tokens", "answers_not_trained_on", and
    conversations with "system_in_question", "role_tag_in_text", "unusual_character".
    """

    encoded: EncodedConversations
    origins: NDArray[np.int64]
    bad: list[BadLine]
    tolerated: Counter[str]
    counts: Counter[str]
    num_bytes: int


def split_inputs(paths: Iterable[str]) -> Iterator[Chunk]:
    """Cut files into chunks of about CHUNK_BYTES, in order. Raises DataError when a file cannot be read."""
    is_first = True
    for file, path in enumerate(paths):
        for chunk in _split_lines(path, file) if is_json_lines(path) else _split_records(path, file):
            yield replace(chunk, check_all=is_first)
            is_first = False


def _split_lines(path: str, file: int) -> Iterator[Chunk]:
    for block in split_blocks(path):
        yield Chunk(path, file, block, [], 0, [], Counter(), len(block.data or b""), False)


def _split_records(path: str, file: int) -> Iterator[Chunk]:
    """A file of another format, read whole; its bad records go with the first chunk."""
    bad = BadLines(max_bad_lines=sys.maxsize)
    conversations = list(read_records(path, functools.partial(parse_conversations, notes=bad.tolerated), bad))
    sizes = [sum(len(turn.value) for turn in conversation.turns) for conversation in conversations]
    start, end = 0, 0
    while start == 0 or start < len(conversations):
        num_bytes = 0
        while end < len(conversations) and num_bytes < blocks.CHUNK_BYTES:
            num_bytes += sizes[end]
            end += 1
        faults = ([], Counter()) if start else (bad.lines, bad.tolerated)
        yield Chunk(path, file, None, conversations[start:end], start + 1, *faults, num_bytes, False)
        start = max(end, 1)


def encode_chunk(chunk: Chunk, *, tokenizer_path: str, source: str | None) -> EncodedChunk:
    """Parse, select and encode one chunk. Runs in a worker, which opens the tokenizer once."""
    tokenizer = _open_once(tokenizer_path)
    bad = BadLines(sys.maxsize, list(chunk.bad), Counter(chunk.tolerated))
    read = list(_parse(chunk, bad))
    selected = [(line, one) for line, one in read if source is None or one.source == source]
    lines, chosen = [line for line, _ in selected], [one for _, one in selected]
    encoded = encode_conversations(chosen, tokenizer)
    checked, mismatched = count_template_mismatches(chosen, encoded, tokenizer, None if chunk.check_all else 1)
    counts = Counter(
        conversations=len(read),
        other_source=len(read) - len(chosen),
        tags_encoded_apart=encoded.tags_apart,
        template_checked=checked,
        template_mismatched=mismatched,
        unknown_tokens=0 if tokenizer.unk_id is None else int((encoded.tokens == tokenizer.unk_id).sum()),
        system_in_question=sum(one.system is not None for one in chosen),
        answers_not_trained_on=sum(not turn.trained for one in chosen for turn in one.turns),
        **_count_remarkable(chosen),
    )
    origins = np.array([(chunk.file, lines[kept]) for kept in encoded.kept.tolist()], dtype=np.int64).reshape(-1, 2)
    return EncodedChunk(encoded, origins, bad.lines, bad.tolerated, counts, chunk.num_bytes)


def _count_remarkable(conversations: list[Conversation]) -> dict[str, int]:
    """Conversations with a remarkable text in some turn, by what it is; one search over all tells the usual case."""
    tests = {"role_tag_in_text": lambda text: bool(_ROLE_TAG.search(text)), "unusual_character": _has_unusual_character}
    texts = "\n".join([turn.value for one in conversations for turn in one.turns])
    return {
        name: sum(any(test(turn.value) for turn in one.turns) for one in conversations) if test(texts) else 0
        for name, test in tests.items()
    }


def _has_unusual_character(text: str) -> bool:
    """Whether a character of _UNUSUAL is in the text; 0.3 ns a character and range, less than half of a regex's time."""
    codes = np.frombuffer(text.encode("utf-16-le"), dtype="<u2")  # surrogate pairs fall in none of the ranges
    return any(bool((codes - np.uint16(first) <= last - first).any()) for first, last in _UNUSUAL)


@functools.lru_cache(maxsize=1)
def _open_once(path: str) -> Tokenizer:
    return load_tokenizer(path)


def _parse(chunk: Chunk, bad: BadLines) -> Iterator[tuple[int, Conversation]]:
    """(line, conversation) of each good record."""
    if chunk.block is None:
        yield from enumerate(chunk.conversations, start=chunk.first)
        return
    for raw in lines_of(chunk.block):
        where = f"{chunk.path}:{raw.number}"
        # The first line also tells of the file's encoding.
        found = None if raw.number == 1 else _parse_faultless(raw.raw, where, bad.tolerated)
        if found is None:
            found = _parse_with_care(raw, where, chunk.path, bad)
        for conversation in found:
            yield raw.number, conversation


def _parse_faultless(raw: bytes | None, where: str, notes: Counter[str]) -> list[Conversation] | None:
    """What `_parse_with_care` gives for a line that is right, in half the time; None for any other line."""
    if raw is None or raw.endswith(b"\r\n"):
        return None
    try:
        record = orjson.loads(raw)
        return parse_conversations(record, where, notes) if isinstance(record, dict) else None
    except ValueError:
        return None


def _parse_with_care(raw: RawLine, where: str, path: str, bad: BadLines) -> list[Conversation]:
    for line in parse_lines([raw], path, bad):
        try:
            return parse_conversations(line.record, where, bad.tolerated)
        except DataError as error:
            bad.add_error(path, line.number, error)
    return []
