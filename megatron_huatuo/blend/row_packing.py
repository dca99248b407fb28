"""Documents in drawing order -> rows of `seq_length` tokens, none split, none moved by `window` places or more.

Invariant: rows never exceed `seq_length`, every document is in exactly one row, |draw_order[k] - k| < window.

The oldest waiting document is placed while it fits and the room behind it is of use: filled, or long enough for one of
the next `window` documents. Else the longest of those that fits takes its place (the oldest of that length), again and
again; when none fits, the row is closed. So the order changes only at the ends of rows.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_huatuo._ext import load_kernel
from megatron_huatuo.blend.order_draws import is_whole
from megatron_huatuo.errors import ConfigError, DataError

DEFAULT_WINDOW = 1024
"""Leaves far less than 0.5 % padding on documents of 300 tokens in rows of 4,096."""
PACKING_VERSION = 2
"""Changes whenever the same lengths would give other rows."""


def pack_rows(
    document_lengths: ArrayLike, seq_length: int, window: int = DEFAULT_WINDOW
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack documents into rows.

    document_lengths: tokens of each document in drawing order, whole numbers >= 1 [N]; a longer one than seq_length
        counts as seq_length (it is cut when it is read).
    seq_length: tokens of a row; window: documents that are looked at for a place, 1 keeps the order (next-fit).
    Returns: draw_order int64 [N], the draw in packed place k; row_start int64 [R + 1], row r holds the packed places
        row_start[r] to row_start[r + 1] - 1.
    Raises: ConfigError for seq_length or window; DataError for a length below 1, with its place.
    Cost: O(N log(seq_length) / 6) time, O(window + seq_length) memory beside the arrays.

    >>> order, start = pack_rows([3, 4, 2, 1], seq_length=5, window=3)
    >>> order.tolist(), start.tolist()
    ([0, 2, 1, 3], [0, 2, 4])
    """
    for name, value, most in (("seq_length", seq_length, 2**31 - 1), ("window", window, 2**30)):
        if not (is_whole(value) and 1 <= value <= most):
            raise ConfigError(f"wrong {name}: got {value!r}, need a whole number from 1 to {most}")
    lengths = np.asarray(document_lengths)
    if lengths.size == 0:
        lengths = lengths.astype(np.int64).reshape(-1)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DataError(f"wrong document_lengths: got {lengths.dtype} {lengths.shape}, need whole numbers [N]")
    if lengths.dtype != np.int32:
        lengths = lengths.astype(np.int64, copy=False)
    if lengths.size and (least := int(lengths.min())) < 1:
        place = int(lengths.argmin())
        raise DataError(f"wrong length of document {place}: got {least} tokens, need at least 1")
    packer = RowPacker(seq_length, window)
    parts = [packer.add(lengths), packer.finish()]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


class RowPacker:
    """Packs a stream: `add` the next documents' lengths, `finish` at the end. Memory: O(window + seq_length)."""

    def __init__(self, seq_length: int, window: int) -> None:
        """Both as in `pack_rows`, checked there or by the configuration."""
        kernel = load_kernel()
        self._packer: Any = (
            _ReferencePacker(seq_length, window) if kernel is None else kernel.RowPacker(seq_length, window)
        )

    def add(self, lengths: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Add documents (int32 or int64 [n]); returns the draws that are placed by now, and the rows that begin."""
        placed: tuple[NDArray[np.int64], NDArray[np.int64]] = self._packer.add(np.ascontiguousarray(lengths))
        return placed

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Place what is left; the last row start is the number of all documents."""
        placed: tuple[NDArray[np.int64], NDArray[np.int64]] = self._packer.finish()
        return placed


class _ReferencePacker:
    """The same in plain Python: a sorted list of (length, -draw) stands for the waiting documents."""

    def __init__(self, seq_length: int, window: int) -> None:
        self._seq_length, self._window = seq_length, window
        self._lengths: list[int] = []
        self._placed: list[bool] = []
        self._waiting: list[tuple[int, int]] = []
        self._oldest = self._room = self._added = self._packed = 0

    def add(self, lengths: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        self._lengths += np.minimum(lengths, self._seq_length).tolist()
        self._placed += [False] * len(lengths)
        return self._pack(len(self._lengths) - self._window + 1)  # as far as a whole window is known

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order, row_start = self._pack(len(self._lengths))
        return order, np.append(row_start, self._packed)

    def _pack(self, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Place documents until `stop` are placed in all."""
        order: list[int] = []
        row_start: list[int] = []
        waiting, known = self._waiting, len(self._lengths)
        while self._packed < stop:
            while self._added < min(known, self._packed + self._window):
                bisect.insort(waiting, (self._lengths[self._added], -self._added))
                self._added += 1
            while self._placed[self._oldest]:
                self._oldest += 1
            draw, length = self._oldest, self._lengths[self._oldest]
            rest = self._room - length
            if rest < 0 or 0 < rest < waiting[0][0]:
                fitting = bisect.bisect_right(waiting, (self._room, 1)) - 1
                if fitting >= 0 and self._packed - self._oldest != self._window - 1:
                    length, draw = waiting[fitting][0], -waiting[fitting][1]
                elif rest < 0:
                    row_start.append(self._packed)
                    self._room = self._seq_length
            self._room -= length
            waiting.remove((length, -draw))
            self._placed[draw] = True
            order.append(draw)
            self._packed += 1
        return np.array(order, dtype=np.int64), np.array(row_start, dtype=np.int64)


def reference_pack_rows(
    lengths: NDArray[np.integer], seq_length: int, window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`pack_rows` in plain Python, for tests and where the kernel is not built."""
    packer = _ReferencePacker(seq_length, window)
    parts = [packer.add(lengths), packer.finish()]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
