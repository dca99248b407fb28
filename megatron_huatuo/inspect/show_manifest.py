"""Manifests, JSON Lines and arrays as text for a person. Reads only, and never unpickles."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import split_lines
from megatron_huatuo.storage.manifest import SEAL, read_json

_HEADER = ("kind", "format_version", "created", "megatron_huatuo", "files", SEAL)
_LONGEST_VALUE = 300
_SHOWN_FILES = 20


def describe_manifest(manifest: Mapping[str, Any]) -> list[str]:
    """What a manifest says: kind, files with their sizes, then its own content, long values shortened."""
    made = manifest.get("created", "no time recorded")
    lines = [f"{manifest.get('kind', 'unknown kind')}, format {manifest.get('format_version')}, {made}"]
    files = manifest.get("files", {})
    lines += [
        f"  {format_bytes(entry['bytes']):>10s}  {entry['sha256'][:12]}…  {name}"
        for name, entry in itertools.islice(files.items(), _SHOWN_FILES)
    ]
    if len(files) > _SHOWN_FILES:
        rest = list(files.values())[_SHOWN_FILES:]
        lines.append(f"  {format_bytes(sum(entry['bytes'] for entry in rest)):>10s}  in {len(rest)} more files")
    content = {key: value for key, value in manifest.items() if key not in _HEADER}
    return [*lines, *describe_values(content)]


def describe_values(content: Mapping[str, Any]) -> list[str]:
    """One `key: value` a line."""
    return [f"{key}: {shorten(value)}" for key, value in content.items()]


def shorten(value: Any, longest: int = _LONGEST_VALUE) -> str:
    """A value as one line of text, cut with its length where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def format_bytes(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def describe_record(path: Path, number: int) -> list[str]:
    """Line `number` (from 1) of a JSON Lines file: its keys, texts in full. Raises: DataError when there is none."""
    raw = next((line.raw for line in split_lines(path) if line.number == number), None)
    if raw is None:
        raise DataError(
            f"no line {number}: {path} ends before it, or the line is over the limit. Choose a lower number."
        )
    try:
        record = json.loads(raw)
    except ValueError:
        return [f"{path}:{number} is not JSON:", raw[:_LONGEST_VALUE].decode("utf-8", "backslashreplace")]
    return [f"{path}:{number}", *json.dumps(record, ensure_ascii=False, indent=2).splitlines()]


def describe_lines(path: Path) -> list[str]:
    """How many lines a JSON Lines file has, and the first one."""
    count = sum(1 for _ in split_lines(path))
    return [f"{path}: {count:,} lines", *(describe_record(path, 1) if count else [])]


def describe_json(path: Path) -> list[str]:
    """A JSON file: a manifest, an object's keys, or the value itself."""
    content = read_json(path)
    if isinstance(content, dict):
        return describe_manifest(content) if "kind" in content and "files" in content else describe_values(content)
    return [shorten(content)]


def describe_array(path: Path) -> list[str]:
    """Type, shape and first values of a `.npy` file. Raises: DataError when it is none, or holds pickled objects."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"not an array, or one that would execute code: {path} ({error}). Build it again.") from error
    first = ", ".join(map(str, array.ravel()[:12].tolist()))
    return [f"{path}: {array.dtype} {list(array.shape)}, {format_bytes(array.nbytes)}", f"first values: {first}"]


def join(lines: Iterable[str]) -> str:
    """Lines as text that a terminal can show: control characters other than tabs are escaped."""
    return "\n".join(
        "".join(char if char.isprintable() or char in "\t\u3000" else repr(char)[1:-1] for char in line)
        for line in lines
    )
