"""A bit that flips on the disk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def random_flip(path: Path, draw: random.Random) -> Iterator[tuple[int, int]]:
    """Flip one bit of a file for the length of the block; gives (byte, bit)."""
    place, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
    _flip(path, place, bit)
    try:
        yield place, bit
    finally:
        _flip(path, place, bit)


def _flip(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as handle:
        handle.seek(place)
        [byte] = handle.read(1)
        handle.seek(place)
        handle.write(bytes([byte ^ 1 << bit]))
