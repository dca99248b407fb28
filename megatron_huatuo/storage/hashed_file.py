"""A file that is hashed while it is written, so that a manifest costs no second reading."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 20


class HashedFile:
    """A new binary file for bytes and arrays; knows its size and sha256. A context manager that closes it.

    bytes: written so far. error: why a write failed, for callers of torch.save, which does not pass it on.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.bytes = 0
        self.error: OSError | None = None
        self._handle = open(path, "wb")  # noqa: SIM115 - closed by close() and by __exit__
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._handle.close()

    def write(self, data: bytes | memoryview | NDArray[Any]) -> int:
        """Append bytes, or those of a C-contiguous array; returns their number.

        A second thread hashes large data meanwhile. Both are done on return, so `data` may be changed then.
        """
        view = memoryview(data.data if isinstance(data, np.ndarray) else data)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        hashing = self._thread.submit(self._digest.update, view) if len(view) >= _BLOCK else None
        if hashing is None:
            self._digest.update(view)
        try:
            self._handle.write(view)
        except OSError as error:
            self.error = error
            raise
        finally:
            if hashing is not None:
                hashing.result()
        self.bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """Where the next byte goes."""
        return self.bytes

    def flush(self) -> None:
        """Hand everything to the system."""
        self._handle.flush()

    def sync(self) -> None:
        """Wait until the disk has everything."""
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def blocks(self, dtype: str) -> Iterator[NDArray[Any]]:
        """What has been written, read back as arrays of at most 2^20 items."""
        self._handle.flush()
        with open(self.path, "rb") as handle:
            while data := handle.read(_BLOCK * np.dtype(dtype).itemsize):
                yield np.frombuffer(data, dtype=dtype)

    def described(self) -> dict[str, Any]:
        """{bytes, sha256} as a manifest lists them."""
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}


@contextlib.contextmanager
def hashed_file(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[HashedFile]:
    """Write a file for the duration of a `with`. sync: leave it on the disk, not in the system's memory alone.

    Raises: OSError when the system refuses, also where torch.save made a RuntimeError of it.
    """
    with HashedFile(path) as file:
        try:
            yield file
            file.sync() if sync else file.flush()
        except RuntimeError:
            if file.error is not None:
                raise file.error from None
            raise
