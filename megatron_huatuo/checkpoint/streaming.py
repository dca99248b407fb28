"""The one pipeline of import and export: weights, or pieces of them, are read while those before are hashed and written.

    reading thread   read, check      piece 2      piece 3      …      ahead, TwoBuffers, read_into
    caller           write        piece 1      piece 2          …      hashing_file
    hashing thread   sha256       piece 1      piece 2          …

Invariant: two pieces are in memory, the one being read and the one in use. They lie in memory that is used again and
again: reading into fresh memory takes 0.6 s a GB, into memory in use 0.14, because the system clears every fresh page.
A piece is at most PIECE_BYTES (an import's are whole weights): smaller ones made an export that hashes slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.storage.hashed_file import HashedFile, hashed_file

PIECE_BYTES = 32_000_000
_END = object()
T = TypeVar("T")


def ahead(items: Iterable[T]) -> Generator[T]:
    """The same items; a second thread makes the next one while the caller works with this one.

    The caller is done with an item when it asks for the next one: what the item lay in may then be used again.
    """
    source = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, source, _END)
            yield item  # type: ignore[misc]


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread: its others spin while they wait, on the cores that read, hash and write."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TwoBuffers:
    """Memory for two tensors, handed out in turn: what `ahead` needs."""

    def __init__(self, largest_bytes: int) -> None:
        self._buffers = [np.empty(largest_bytes, dtype=np.uint8) for _ in range(2)]

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """The memory that was not handed out last, as a tensor of arbitrary values.

        Its storage ends with it: torch.save writes whole storages, so a slice of a larger one would be saved with all
        that lies around it.
        """
        self._buffers.reverse()
        size = torch.Size(shape).numel() * dtype.itemsize
        return torch.frombuffer(self._buffers[0][:size], dtype=dtype).view(shape)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, without a copy."""
    if not tensor.numel():
        return memoryview(b"")
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def in_pieces(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of a tensor, a piece at a time."""
    yield from rows.split(rows_a_piece(rows[:1].nbytes))


def rows_a_piece(row_bytes: int) -> int:
    """As many as take PIECE_BYTES, or one."""
    return max(1, PIECE_BYTES // max(1, row_bytes))


def is_finite(values: torch.Tensor) -> bool:
    """Whether there is no NaN and no infinite value."""
    return not values.numel() or all(bound.isfinite() for bound in torch.aminmax(values))


def read_into(file: Any, tensor: torch.Tensor) -> None:
    """Fill a contiguous tensor from an unbuffered file. Raises: EOFError when the file ends before."""
    room = bytes_of(tensor)
    while room:
        count = file.readinto(room)
        if not count:
            raise EOFError("it ends early")
        room = room[count:]


@contextlib.contextmanager
def hashing_file(path: Path) -> Iterator[HashedFile]:
    """Open a new file for writing, hashed in the same pass.

    Raises: HuatuoError naming the file when the system refuses (disk full).
    """
    try:
        with hashed_file(path) as file:
            yield file
    except OSError as error:
        raise HuatuoError(f"cannot write {path}: {error}. Free space and run it again.") from error
