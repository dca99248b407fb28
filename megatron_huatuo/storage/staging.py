"""Several files published together: written in a private directory, renamed under a lock, leftovers of the dead removed.

Invariant: a final name is only ever given to a complete file, and two jobs that publish the same names never mix their
files. A staging directory is locked while its process lives, so that after a kill the next job knows it for dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_huatuo.storage.atomic import fsync_directory


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the advisory lock of a directory; False where somebody else has it or the file system knows no such lock."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path, pattern: str) -> None:
    for directory in parent.glob(pattern):
        with contextlib.suppress(OSError), _locked(directory, wait=False) as dead:
            if dead:
                shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def staging_directory(path_prefix: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a private directory beside `path_prefix` for its unfinished files; it is removed when the block ends.

    Directories that killed jobs left for the same prefix are removed first.
    Raises: OSError when the parent cannot be written.
    """
    prefix = Path(path_prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    staging = prefix.parent / f".{prefix.name}.{os.getpid()}-{secrets.token_hex(4)}.staging"
    with contextlib.ExitStack() as stack:
        with _locked(prefix.parent, wait=True) as alone:
            if alone:
                _remove_abandoned(prefix.parent, f".{prefix.name}.*.staging")
            staging.mkdir()
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            stack.enter_context(_locked(staging, wait=False))
        yield staging


def publish_files(staging: Path, targets: Sequence[Path]) -> None:
    """Rename the staged files of these names to `targets` (one directory), the last one last.

    The last target is the manifest: an old one is removed first, so it never stands beside files of another run.
    """
    for target in targets:
        with open(staging / target.name, "rb") as handle:
            os.fsync(handle.fileno())
    parent = targets[-1].parent
    with _locked(parent, wait=True):
        targets[-1].unlink(missing_ok=True)
        for target in targets:
            os.replace(staging / target.name, target)
        fsync_directory(parent)
