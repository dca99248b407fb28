"""What a finished exam leaves on disk: names of its files, its scores, and the fingerprint of the model that sat it.

Invariant: only a directory whose manifest and files belong together is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from megatron_huatuo.log import progress
from megatron_huatuo.storage.manifest import (
    MANIFEST_NAME,
    fingerprint,
    read_json,
    read_manifest,
    sha256_file,
    verify_files,
)

EXAM_KIND = "exam"
REPLIES, SCORES = "replies.jsonl", "scores.json"

# Files of a model directory that decide no reply.
_NO_CONTENT = (".md", ".png", ".jpg")


def read_exam(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(manifest, scores) of a finished exam. Raises: IntegrityError when it is unfinished, torn or changed."""
    root = Path(directory)
    manifest = read_manifest(root, EXAM_KIND)
    verify_files(root, manifest)
    return manifest, read_json(root / SCORES)


def directory_fingerprint(directory: Path) -> str:
    """Fingerprint of all files that decide a model's replies: names and contents; model card and dot files left out."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    decisive = [path for path in files if path.suffix not in _NO_CONTENT and path.name != MANIFEST_NAME]
    size = sum(path.stat().st_size for path in decisive)
    hashes = {}
    with progress(total=size, description="fingerprint of the model", unit="B", unit_scale=True) as bar:
        for path in decisive:
            hashes[path.name] = sha256_file(path)
            bar.update(path.stat().st_size)
    return fingerprint(hashes)
