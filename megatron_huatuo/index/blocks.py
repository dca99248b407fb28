"""Files cut into blocks of whole lines, fast enough for one reader to feed many tokenising processes.

Invariant: the lines of all blocks are those of `storage.jsonl.split_lines`, with the same numbers and offsets.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import MAX_LINE_BYTES, RawLine
from megatron_huatuo.storage.text_files import open_binary

# About a tenth of a second of tokenising: long enough to forget the message's cost, short enough that none waits. Must stay
# below MAX_LINE_BYTES.
CHUNK_BYTES = 256 << 10


class Block(NamedTuple):
    """Neighbouring lines; number and offset are those of the first. data is None for one line over MAX_LINE_BYTES."""

    number: int
    offset: int
    data: bytes | None


def split_blocks(path: str) -> Iterator[Block]:
    """Cut a file (`.gz` too) into blocks of about CHUNK_BYTES. Raises DataError when it cannot be read."""
    number, offset = 1, 0
    with open_binary(path) as handle:
        try:
            while data := handle.read(CHUNK_BYTES):
                if not data.endswith(b"\n"):
                    data += handle.readline(MAX_LINE_BYTES + 1)
                last = data.rfind(b"\n", 0, len(data) - 1) + 1
                whole = data if len(data) - last <= MAX_LINE_BYTES else data[:last]
                if whole:
                    yield Block(number, offset, whole)
                    number, offset = number + whole.count(b"\n"), offset + len(whole)
                if len(whole) < len(data):
                    size = len(data) - last
                    while not data.endswith(b"\n") and (data := handle.readline(MAX_LINE_BYTES)):
                        size += len(data)
                    yield Block(number, offset, None)
                    number, offset = number + 1, offset + size
        except (EOFError, zlib.error, OSError) as error:
            raise DataError(f"file is incomplete after line {number - 1}: {error} ({path}). Copy it again.") from error


def lines_of(block: Block) -> Iterator[RawLine]:
    """The lines of a block, with their line ends."""
    number, offset, data = block
    if data is None:
        yield RawLine(number, offset, None)
        return
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield RawLine(number, offset + start, data[start:end])
        number, start = number + 1, end
