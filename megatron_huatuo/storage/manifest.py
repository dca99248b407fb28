"""Manifests: what a directory holds, and the hashes that prove it.

Invariant: `manifest.json` is written last, so a directory with a manifest is complete. It proves the files beside it, and
by its seal itself.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo import __version__
from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.storage.atomic import atomic_write

MANIFEST_NAME = "manifest.json"
SEAL = "manifest_sha256"
_CHUNK_BYTES = 1 << 20


def sha256_file(path: str | os.PathLike[str], cancelled: threading.Event | None = None) -> str:
    """sha256 of a file as 64 hexadecimal digits, read in chunks of 1 MiB.

    cancelled: another thread sets it when nobody waits for the hash any more. Raises: InterruptedError then.
    """
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_CHUNK_BYTES))  # one for all reads: fresh memory costs more than reading into it
    with open(path, "rb", buffering=0) as handle:
        while count := handle.readinto(chunk):
            if cancelled is not None and cancelled.is_set():
                raise InterruptedError(f"hashing was given up: {path}")
            digest.update(chunk[:count])
    return digest.hexdigest()


def fingerprint(content: Any) -> str:
    """sha256 of an object's canonical JSON (sorted keys, no spaces): equal content, equal fingerprint."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def fingerprint_work(files: Iterable[str], decisive: Any) -> str:
    """Name of a folder of unfinished work: changes with its input files (name, size, time of change), with what else
    decides the result, and with the version of this code."""
    states = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
    return fingerprint([__version__, states, decisive])[:16]


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write indented JSON atomically. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, "w") as handle:
        handle.write(text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read one JSON file. Raises IntegrityError naming the file when it is missing, incomplete or not JSON."""
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except FileNotFoundError as error:
        raise IntegrityError(f"file is missing: {path}. Run the stage that writes it again.") from error
    except ValueError as error:
        raise IntegrityError(f"file is incomplete or not JSON: {path} ({error}). Run its stage again.") from error


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the fingerprint of its own content under `SEAL`: what is flipped in it later shows."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return {**content, SEAL: fingerprint(json.loads(json.dumps(content)))}  # as a reader will see it


def describe_files(directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: {bytes, sha256}} of files below `directory`."""
    return {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)}
        for name in sorted(names)
    }


def describe_input(path: str | os.PathLike[str]) -> dict[str, str]:
    """{file, sha256} of a file that was read."""
    return {"file": os.fspath(path), "sha256": sha256_file(path)}


def write_manifest(
    directory: str | os.PathLike[str],
    kind: str,
    content: Mapping[str, Any],
    files: Iterable[str] | Mapping[str, Mapping[str, Any]] = (),
    *,
    name: str = MANIFEST_NAME,
) -> dict[str, Any]:
    """Write the manifest of a finished directory and return it.

    kind: what the directory is ("corpus", "unified", "index", "blend", "checkpoint", …).
    files: names relative to `directory` whose size and sha256 are recorded, or {name: {bytes, sha256}} as measured.
    """
    root = Path(directory)
    header = {
        "kind": kind,
        "format_version": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "megatron_huatuo": __version__,
        "files": dict(files) if isinstance(files, Mapping) else describe_files(root, files),
    }
    assert not header.keys() & content.keys(), "content must not replace the header"
    manifest = sealed({**header, **content})
    write_json(root / name, manifest)
    return manifest


def read_manifest(directory: str | os.PathLike[str], kind: str, *, name: str = MANIFEST_NAME) -> dict[str, Any]:
    """Read a manifest and check its kind, version and seal (one without a seal is accepted). Raises IntegrityError."""
    path = Path(directory) / name
    manifest = read_json(path)
    found = manifest.get("kind") if isinstance(manifest, dict) else None
    if found != kind:
        raise IntegrityError(f"wrong kind of directory: got {found!r}, need {kind!r} ({path}). Check the path.")
    if manifest.get("format_version") != 1:
        raise IntegrityError(
            f"unknown format version: got {manifest.get('format_version')!r}, need 1 ({path}). "
            "Use the version of megatron_huatuo that wrote it."
        )
    if not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"no list of files in {path}. Run the stage that writes it again.")
    if SEAL in manifest and sealed(manifest) != manifest:
        raise IntegrityError(
            f"manifest is damaged or was edited: {path} differs from its own {SEAL}. Restore it, or run its stage again."
        )
    return manifest


def verify_files(directory: str | os.PathLike[str], manifest: Mapping[str, Any], *, hashes: bool = True) -> None:
    """Check sizes, and sha256 unless `hashes` is off. Raises IntegrityError that names the first bad file."""
    root = Path(directory)
    for name, expected in manifest["files"].items():
        path = root / name
        if not path.is_file():
            raise IntegrityError(f"file is missing: {path} is named in the manifest. Restore or rebuild it.")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise IntegrityError(
                f"file has a wrong size: got {size} bytes, need {expected['bytes']} ({path}). Restore or rebuild it."
            )
        if hashes and (digest := sha256_file(path)) != expected["sha256"]:
            raise IntegrityError(
                f"file differs from its manifest: got sha256 {digest}, need {expected['sha256']} ({path}). "
                "Restore or rebuild it."
            )


def check_replaceable(directory: str | os.PathLike[str], kind: str) -> None:
    """A stage may replace its own earlier output, an empty directory, or nothing; never files of somebody else.

    Raises: DataError when `directory` holds anything but a directory of this kind.
    """
    root = Path(directory)
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    try:
        read_manifest(root, kind)
    except (IntegrityError, OSError) as error:
        raise DataError(
            f"output exists and is not a directory of kind {kind!r}: {root}. Choose another one, or delete it."
        ) from error
