"""A file that is hashed while it is written, so that a manifest costs no second reading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 20


class HashedFile:
    """A new binary file for arrays and bytes; knows its size and sha256. A context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = open(path, "wb")  # noqa: SIM115 - closed by close() and by __exit__
        self._digest = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def write(self, data: bytes | NDArray[Any]) -> None:
        """Append bytes, or the bytes of a C-contiguous array."""
        view = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
        self._handle.write(view)
        self._digest.update(view)
        self._bytes += len(view)

    def blocks(self, dtype: str) -> Iterator[NDArray[Any]]:
        """What has been written, read back as arrays of at most 2^20 items."""
        self._handle.flush()
        with open(self.path, "rb") as handle:
            while data := handle.read(_BLOCK * np.dtype(dtype).itemsize):
                yield np.frombuffer(data, dtype=dtype)

    def close(self) -> dict[str, Any]:
        """Close the file; {bytes, sha256} as a manifest lists them."""
        self._handle.close()
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}
