"""Checkpoint directories come and go: the place where one is written, `latest`, what is set aside, what is pruned.

Their names and which of them are complete: `storage/run_files.py`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.manifest import MANIFEST_NAME
from megatron_huatuo.storage.run_files import (
    LATEST,
    complete_checkpoints,
    iteration_name,
    iteration_of,
    torn_checkpoints,
)


def unfinished_directory(checkpoints: Path, iteration: int) -> Path:
    """Where a checkpoint is written before it takes its name; all ranks agree on it without talking."""
    return checkpoints / f".{iteration_name(iteration)}.tmp"


def published_but_torn(checkpoints: str | os.PathLike[str]) -> list[Path]:
    """Directories with a checkpoint's name and no manifest: what once was, or a deletion that was interrupted."""
    return [path for path in torn_checkpoints(checkpoints) if not path.name.startswith(".")]


def set_aside(directory: Path) -> Path:
    """Rename a damaged checkpoint so that nothing counts or loads it any more; a person may look at it or delete it."""
    target = directory.with_name(f"damaged_{directory.name}")
    for number in range(2, 1000):
        if not target.exists():
            break
        target = directory.with_name(f"damaged_{directory.name}_{number}")
    os.rename(directory, target)
    return target


def write_latest(checkpoints: Path, iteration: int) -> None:
    """Note the newest checkpoint."""
    with atomic_write(checkpoints / LATEST, "w") as handle:
        handle.write(f"{iteration}\n")


def latest_disagrees(checkpoints: Path, newest: Path) -> str | None:
    """What `latest` says when that is not the newest complete checkpoint, else None."""
    path = checkpoints / LATEST
    text = path.read_bytes().decode("utf-8", "replace").strip() if path.is_file() else "(missing)"
    return None if text == str(iteration_of(newest)) else text or "(empty)"


def prune(checkpoints: Path, keep: int, keep_every: int | None = None) -> list[Path]:
    """Delete all but the newest `keep` complete checkpoints and those whose iteration `keep_every` divides.

    Returns what was deleted. The manifest goes first, so an interrupted deletion leaves no complete checkpoint.
    """
    outdated = [
        path
        for path in complete_checkpoints(checkpoints)[max(1, keep) :]
        if not (keep_every and iteration_of(path) % keep_every == 0)
    ]
    for path in outdated:
        (path / MANIFEST_NAME).unlink()
        shutil.rmtree(path)
    return outdated
