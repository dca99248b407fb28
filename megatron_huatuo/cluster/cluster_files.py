"""Do all ranks share one file system, and is a rename on it atomic? Checkpoints rest on both.

Invariant: nothing is left behind; every wait ends after `wait_s`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path

import torch.distributed as dist

_BLOCK_BYTES = 64 << 10
_GENERATIONS = 100


def check_shared_files(directory: str, wait_s: float) -> tuple[str | None, str]:
    """(what is wrong or None, what was found), the same on every rank.

    Each rank writes a file that every other rank must see whole. Then rank 0 renames a new file over an old one again
    and again; the others read it, and must never miss it or see a mixture.
    """
    token = [secrets.token_hex(8)]
    dist.broadcast_object_list(token, src=0)
    folder = Path(directory) / f".check_cluster.{token[0]}"
    try:
        began = time.monotonic()
        problem = _agree(_write_own_file(folder)) or _agree(_see_all_files(folder, wait_s))
        seen_s = time.monotonic() - began
        if problem is None:
            problem = _agree(_replace(folder) if dist.get_rank() == 0 else _read_while_replaced(folder, wait_s))
        return problem, f"{directory}: seen by all ranks in {seen_s:.2f} s, {_GENERATIONS} renames atomic"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _agree(problem: str | None) -> str | None:
    """The first rank's problem, on all ranks; every rank passes here before the next step."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    found = [f"rank {rank} {text}" for rank, text in enumerate(problems) if text is not None]
    return f"{found[0]} ({len(found)} ranks in all)" if found else None


def _write_own_file(folder: Path) -> str | None:
    rank = dist.get_rank()
    try:
        folder.mkdir(exist_ok=True)
        _write_whole(folder / f"rank_{rank}", rank % 256)
    except OSError as error:
        return f"cannot write to {folder.parent}: {error.strerror}"
    return None


def _see_all_files(folder: Path, wait_s: float) -> str | None:
    deadline = time.monotonic() + wait_s
    missing = list(range(dist.get_world_size()))
    while missing:
        missing = [other for other in missing if _read_block(folder / f"rank_{other}") != other % 256]
        if missing and time.monotonic() > deadline:
            return f"does not see the file of rank {missing[0]} in {folder.parent} after {wait_s:g} s: not shared"
        if missing:
            time.sleep(0.02)
    return None


def _write_whole(path: Path, value: int) -> None:
    """A block of one byte's value under `path`, by rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as handle:
        handle.write(bytes([value]) * _BLOCK_BYTES)
    os.replace(temporary, path)


def _read_block(path: Path) -> int | None:
    """The value of a block; None when the file is missing, short or mixed."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[0] if len(content) == _BLOCK_BYTES and content == content[:1] * _BLOCK_BYTES else None


def _replace(folder: Path) -> str | None:
    try:
        for generation in range(_GENERATIONS):
            _write_whole(folder / "rank_0", generation)
    except OSError as error:
        return f"cannot rename in {folder.parent}: {error.strerror}"
    return None


def _read_while_replaced(folder: Path, wait_s: float) -> str | None:
    last, changed = 0, time.monotonic()
    while True:
        value = _read_block(folder / "rank_0")
        if value is None:
            return f"saw a missing or mixed file in {folder.parent} while it was renamed: rename is not atomic"
        if value == _GENERATIONS - 1:
            return None
        if value != last:
            last, changed = value, time.monotonic()
        if time.monotonic() > changed + wait_s:
            return f"still sees an old file in {folder.parent} after {wait_s:g} s of renames"
        time.sleep(0.001)
