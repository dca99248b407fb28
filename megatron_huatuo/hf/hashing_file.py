"""Write a file and its sha256 in one pass.

Invariant: large pieces are hashed by a second thread while they are written, and both are done before `write` returns.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import HuatuoError

_LARGE_BYTES = 1 << 20


class HashingFile:
    """What `hashing_file` opens; has the methods that torch.save needs."""

    def __init__(self, handle: Any, thread: ThreadPoolExecutor) -> None:
        self._handle, self._thread = handle, thread
        self._digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write and hash all of `data`; it may be changed afterwards."""
        size = memoryview(data).nbytes
        hashed = self._thread.submit(self._digest.update, data) if size >= _LARGE_BYTES else None
        if hashed is None:
            self._digest.update(data)
        try:
            self._handle.write(data)
        except OSError as error:
            self.error = error
            raise
        finally:
            if hashed is not None:
                hashed.result()
        self.bytes += size
        return size

    def flush(self) -> None:
        """Hand everything to the system."""
        self._handle.flush()

    def described(self) -> dict[str, Any]:
        """{"bytes", "sha256"} of what was written."""
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}


@contextlib.contextmanager
def hashing_file(path: Path) -> Iterator[HashingFile]:
    """Open a new file for writing.

    Raises: HuatuoError naming the file when the system refuses (disk full), also where torch hides its error.
    """
    with ThreadPoolExecutor(1) as thread:
        written = None
        try:
            with open(path, "wb") as handle:
                written = HashingFile(handle, thread)
                yield written
                handle.flush()
        except (RuntimeError, OSError) as error:
            reason = (written and written.error) or error
            if not isinstance(reason, OSError):
                raise
            raise HuatuoError(f"cannot write {path}: {reason}. Free space and run it again.") from error
