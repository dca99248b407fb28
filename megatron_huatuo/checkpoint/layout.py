"""Where checkpoints lie, which are complete, and which go.

    RUN/checkpoints/latest                    number of the newest one, for people and scripts
    RUN/checkpoints/iter_0000100/manifest.json    written last: sizes and sha256 of everything below
                                /state/           weights and optimizer, megatron-core's distributed format
                                /training.json    iteration, consumed_train_samples, fingerprints, layout
                                /architecture.json  /config.yaml  /tokenizer/

Invariant: a directory is a checkpoint if its name is iter_NNNNNNN and it holds a manifest; `latest` alone is never
trusted. Unfinished ones are hidden (`.iter_….tmp`), damaged ones are renamed (`damaged_iter_…`); neither is ever loaded.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.manifest import MANIFEST_NAME

KIND = "checkpoint"
STATE = "state"
_NAME = re.compile(r"iter_(\d{7,})$")


def iteration_name(iteration: int) -> str:
    """iter_0000100 for 100."""
    return f"iter_{iteration:07d}"


def unfinished_directory(checkpoints: Path, iteration: int) -> Path:
    """Where a checkpoint is written before it takes its name; all ranks agree on it without talking."""
    return checkpoints / f".{iteration_name(iteration)}.tmp"


def iteration_of(directory: Path) -> int:
    """Iteration of a checkpoint directory's name. Raises IntegrityError for another name."""
    found = _NAME.match(directory.name)
    if not found:
        raise IntegrityError(f"no checkpoint directory: {directory}, need a name like iter_0000100. Check the path.")
    return int(found.group(1))


def complete_checkpoints(checkpoints: str | os.PathLike[str]) -> list[Path]:
    """Directories of complete checkpoints, newest first. An absent folder has none."""
    root = Path(checkpoints)
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _NAME.match(path.name) and (path / MANIFEST_NAME).is_file()]
    return sorted(found, key=iteration_of, reverse=True)


def torn_checkpoints(checkpoints: str | os.PathLike[str]) -> list[Path]:
    """What an interrupted save left behind."""
    root = Path(checkpoints)
    if not root.is_dir():
        return []
    hidden = [path for path in root.iterdir() if path.name.startswith(".iter_") and path.name.endswith(".tmp")]
    named = [path for path in root.iterdir() if _NAME.match(path.name) and not (path / MANIFEST_NAME).is_file()]
    return sorted(hidden + named)


def published_but_torn(checkpoints: str | os.PathLike[str]) -> list[Path]:
    """Directories with a checkpoint's name and no manifest: what once was, or a deletion that was interrupted."""
    return [path for path in torn_checkpoints(checkpoints) if not path.name.startswith(".")]


def resolve_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The newest complete checkpoint of a run directory, of its checkpoints/, or `path` itself when it is one.

    Raises: IntegrityError when there is none.
    """
    root = Path(path)
    if _NAME.match(root.name) and (root / MANIFEST_NAME).is_file():
        return root
    for folder in (root / "checkpoints", root):
        if found := complete_checkpoints(folder):
            return found[0]
    raise IntegrityError(
        f"no complete checkpoint in {path}: need a run directory, its checkpoints/ or one iter_NNNNNNN. Check the path."
    )


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
    with atomic_write(checkpoints / "latest", "w") as handle:
        handle.write(f"{iteration}\n")


def latest_disagrees(checkpoints: Path, newest: Path) -> str | None:
    """What `latest` says when that is not the newest complete checkpoint, else None."""
    path = checkpoints / "latest"
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
