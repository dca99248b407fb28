"""Git LFS pointers: three lines of text that a clone without LFS leaves in place of a large file."""

from __future__ import annotations

import os

from megatron_huatuo.errors import DataError

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: str | os.PathLike[str]) -> None:
    """Raises: DataError for what Git LFS leaves in place of a file that was not fetched; OSError."""
    with open(path, "rb") as file:
        if file.read(len(_FIRST_LINE)) == _FIRST_LINE:
            raise DataError(f"pointer of Git LFS instead of the file: {path}. Fetch the file with `git lfs pull`.")
