"""Publish files and directories atomically: a reader sees the old state or the new one, never a half.

Invariant: nothing is written under a final name. Work goes to a private sibling (`.NAME.PID-RANDOM.SUFFIX`), is flushed to
disk and renamed. Two writers of one name never mix; the last complete one wins for files, the first for directories.
A private directory is locked while its writer lives; what a killed writer left is cleared by the next one of that name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from megatron_huatuo.errors import DataError, HuatuoError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file-size limit that is exhausted."""


class _OutputFile(io.FileIO):
    """A raw file whose errors of writing name it, as those of opening do."""

    def write(self, data: Any, /) -> int:
        with naming_write_errors(str(self.name)):
            return super().write(data)


def open_output(path: str | os.PathLike[str]) -> IO[bytes]:
    """Create a binary file for writing; an error of writing it, at its closing too, names the file."""
    return io.BufferedWriter(_OutputFile(os.fspath(path), "w"))


@contextlib.contextmanager
def naming_write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an error that a full disk raises in the block name `path` where it names no file."""
    try:
        yield
    except OSError as error:
        # NumPy's own writing says how many items were lost, and no more.
        if error.filename is None and (error.errno in DISK_FULL or "requested and" in str(error)):
            number = error.errno or errno.ENOSPC
            raise OSError(number, os.strerror(number), os.fspath(path)) from error
        raise


def _temporary_sibling(path: Path, suffix: str = "tmp") -> Path:
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{suffix}"


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """Flush a directory's entries, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", **open_kwargs: Any) -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` for writing; it takes the final name only when the block ends well.

    mode: "wb" or "w" (text is UTF-8 with "\\n" line ends).
    Raises: whatever the block raises, with nothing left behind; OSError when the disk is full or read-only.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(target)
    if "b" not in mode:
        open_kwargs = {"encoding": "utf-8", "newline": "\n", **open_kwargs}
    try:
        with _naming_files_of(temporary, target), naming_write_errors(target):
            with open(temporary, mode, **open_kwargs) as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(target.parent)


@contextlib.contextmanager
def _naming_files_of(private: Path, target: Path) -> Iterator[None]:
    """Let errors of the block name files by their place at or below `target`: the private name is gone by then."""
    try:
        yield
    except HuatuoError as error:
        error.args = tuple(str(part).replace(str(private), str(target)) for part in error.args)
        raise
    except OSError as error:
        if isinstance(error.filename, (str, os.PathLike)):
            error.filename = os.fspath(error.filename).replace(str(private), str(target))
        raise


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Give a private empty directory that becomes `path` when the block ends well.

    replace: take the place of an existing directory (the old one is moved away first and then deleted).
    Raises: DataError when `path` exists and replace is off: at once, and again at the end when another writer was first.
        What the block raises names files by their place below `path`, for the private directory is gone by then.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and (replace or not any(target.iterdir()))):
        raise _exists_already(target)
    with private_directory(target, "tmp") as temporary:
        yield temporary
        for child in temporary.rglob("*"):
            if child.is_file():
                with open(child, "rb") as handle:
                    os.fsync(handle.fileno())
        fsync_directory(temporary)
        _publish(temporary, target, replace)
    fsync_directory(target.parent)


@contextlib.contextmanager
def private_directory(target: Path, suffix: str) -> Iterator[Path]:
    """A new directory beside `target`, locked by this process (and its forks); what is left of it after the block is
    deleted, and so is first what killed processes left of theirs. Errors name files by their place below `target`.

    The kernel drops the lock of the dead. Where the file system has no locks it is not locked, and nobody else can take it
    for abandoned either.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target, suffix)
    while True:
        directory = _temporary_sibling(target, suffix)
        directory.mkdir()
        with locked(directory):
            if directory.exists():  # not cleared between its making and its lock
                try:
                    with _naming_files_of(directory, target), naming_write_errors(target):
                        yield directory
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
                return


@contextlib.contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process got the lock of a directory, which it then holds for the block; not where the file system
    knows no such lock. wait: for whoever has it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_abandoned(target: Path, suffix: str) -> None:
    """Delete private directories of this name that no living process holds."""
    name = re.compile(rf"\.{re.escape(target.name)}\.\d+-[0-9a-f]{{8}}\.{suffix}")
    for sibling in target.parent.iterdir():
        if name.fullmatch(sibling.name) and sibling.is_dir():
            with locked(sibling) as is_abandoned:
                if is_abandoned:
                    shutil.rmtree(sibling, ignore_errors=True)


def _publish(temporary: Path, target: Path, replace: bool) -> None:
    if replace and target.is_dir():
        outdated = _temporary_sibling(target)
        os.rename(target, outdated)
        try:
            os.rename(temporary, target)
        except OSError:
            os.rename(outdated, target)
            raise
        shutil.rmtree(outdated, ignore_errors=True)
        return
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    try:
        os.rename(temporary, target)
    except OSError as error:
        if target.exists():
            raise _exists_already(target) from error
        raise


def _exists_already(target: Path) -> DataError:
    return DataError(f"output directory exists already: {target}. Choose another one, or delete it.")


def publish_files(private: Path, targets: Sequence[Path]) -> None:
    """Rename files of a private directory to `targets` (one directory) of the same names, the last one last.

    Under a lock, so that two writers of the same names never mix their files. The last target is the manifest: an old one
    is removed first, so it never stands beside files of another run.
    """
    for target in targets:
        with open(private / target.name, "rb") as handle:
            os.fsync(handle.fileno())
    parent = targets[-1].parent
    with locked(parent, wait=True):
        targets[-1].unlink(missing_ok=True)
        for target in targets:
            os.replace(private / target.name, target)
        fsync_directory(parent)
