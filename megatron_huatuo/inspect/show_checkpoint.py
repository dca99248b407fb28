"""A checkpoint as text for a person: where the run stood, its layout, and every tensor. Nothing in it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_huatuo.checkpoint.integrity import verify_harmless
from megatron_huatuo.inspect.show_manifest import describe_manifest, describe_values, format_bytes
from megatron_huatuo.storage.manifest import read_json, read_manifest, verify_files
from megatron_huatuo.storage.run_files import ARCHITECTURE, CHECKPOINT_KIND, STATE, TRAINING


def describe_checkpoint(directory: Path, *, file: str | None = None) -> list[str]:
    """training.json, architecture, tensors and the manifest of one iter_NNNNNNN directory.

    file: name below state/ whose tensors alone are listed. Sizes are checked, hashes are not.
    Raises: IntegrityError when a file is missing or torn, or a pickle would execute code.
    """
    manifest = read_manifest(directory, CHECKPOINT_KIND)
    verify_files(directory, manifest, hashes=False)
    verify_harmless(directory)
    if file is not None:
        return [f"tensors in {directory / STATE / file}:", *_tensors(directory, file)]
    lines = [f"checkpoint {directory}"]
    for name in (TRAINING, ARCHITECTURE):
        if (directory / name).is_file():
            lines += [f"[{name}]", *describe_values(read_json(directory / name))]
    return [*lines, "[tensors]", *_tensors(directory, None), "[manifest]", *describe_manifest(manifest)]


def _tensors(directory: Path, file: str | None) -> list[str]:
    """Name, type, global shape and number of pieces of each tensor; what is no tensor, by name."""
    metadata = FileSystemReader(str(directory / STATE)).read_metadata()
    storage: dict[Any, Any] = metadata.storage_data
    kept = {index.fqn for index, place in storage.items() if file is None or place.relative_path == file}
    lines, total = [], 0
    for name, entry in sorted(metadata.state_dict_metadata.items()):
        if name not in kept:
            continue
        if isinstance(entry, TensorStorageMetadata):
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            total += entry.size.numel() * entry.properties.dtype.itemsize
            lines.append(f"  {dtype:9s} {list(entry.size)!s:24s} {len(entry.chunks):4d} pieces  {name}")
        else:
            lines.append(f"  object{'':38s}{name}")
    return [*lines, f"  {len(lines)} entries, {format_bytes(total)} of tensors"]
