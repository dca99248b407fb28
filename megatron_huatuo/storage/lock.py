"""One writer a path: an advisory lock that dies with its process.

Invariant: a killed process leaves no lock behind, because the kernel drops it; the empty lock file stays and is reused.
The package filelock would do the same by flock, but where a file system has none (ENOSYS: Lustre mounted without it) it turns
to a lock file that a kill leaves behind, and the next start of a run would be refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_huatuo.errors import DataError
from megatron_huatuo.log import get_logger


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of `path` (a sibling `.NAME.lock`), and clear what a killed writer left under temporary names.

    Raises: DataError when another process holds it. On file systems without locks it warns and goes on.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(
                    f"another process is writing {target}. Wait for it, or choose another output."
                ) from error
            get_logger(__name__).warning("no file locks here (%s): run one job an output only: %s", error, target)
        else:
            remove_temporaries(target)
        yield


def remove_temporaries(target: Path) -> None:
    """Delete the temporary siblings that killed writers of `target` left. Only for the holder of its lock."""
    prefix, suffix = f".{target.name}.", ".tmp"
    for sibling in target.parent.iterdir():
        # Names are compared as text: the name itself may hold characters that a glob would interpret.
        if sibling.name.startswith(prefix) and sibling.name.endswith(suffix):
            if sibling.is_dir():
                shutil.rmtree(sibling, ignore_errors=True)
            else:
                sibling.unlink(missing_ok=True)
