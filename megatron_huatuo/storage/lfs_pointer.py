"""Git LFS pointers: three lines of text that a clone without LFS leaves in place of a large file."""

from __future__ import annotations

from pathlib import Path

from megatron_huatuo.errors import IntegrityError

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(path: Path) -> None:
    """Raises: IntegrityError when the file is a pointer."""
    with open(path, "rb") as file:
        if file.read(len(_FIRST_LINE)) == _FIRST_LINE:
            raise IntegrityError(
                f"Git LFS pointer in place of a file: {path}. Fetch the file itself: git lfs pull, or hf download."
            )
