"""A Hugging Face directory as text for a person. Reads config.json and the headers of safetensors; runs no code."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.inspect.show_manifest import describe_manifest, describe_values, format_bytes
from megatron_huatuo.storage.manifest import MANIFEST_NAME, read_json

_LARGEST_HEADER = 100 << 20


def describe_hf_directory(directory: Path) -> list[str]:
    """config.json, every tensor, and the manifest where this project wrote the directory."""
    lines = [f"Hugging Face model {directory}", "[config.json]", *describe_values(read_json(directory / "config.json"))]
    shards = sorted(directory.glob("*.safetensors"))
    lines += ["[tensors]", *(line for shard in shards for line in describe_safetensors(shard))]
    if not shards:
        lines += [
            f"  {format_bytes(path.stat().st_size)}  {path.name} (not opened)" for path in directory.glob("*.bin")
        ]
    if (directory / MANIFEST_NAME).is_file():
        lines += ["[manifest]", *describe_manifest(read_json(directory / MANIFEST_NAME))]
    return lines


def describe_safetensors(path: Path) -> list[str]:
    """Type, shape and name of each tensor of one file. Raises: IntegrityError when its header or size is wrong."""
    header = _read_header(path)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    lines = [f"  {entry['dtype']:6s} {entry['shape']!s:20s} {name}" for name, entry in tensors.items()]
    return [*lines, f"  {len(tensors)} tensors in {path.name}, {format_bytes(path.stat().st_size)}"]


def _read_header(path: Path) -> dict[str, Any]:
    """The JSON header: 8 bytes of its length, little-endian, then itself; the data must end where the file ends."""
    torn = f"file is incomplete or not safetensors: {path}. Download or export it again."
    size = path.stat().st_size
    with open(path, "rb") as handle:
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(size - 8, _LARGEST_HEADER):
            raise IntegrityError(torn)
        try:
            header = json.loads(handle.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(torn) from error
    if 8 + length + max(ends, default=0) != size:
        raise IntegrityError(torn)
    return dict(header)
