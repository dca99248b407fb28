"""Prove a checkpoint sound and harmless before anything of it is loaded.

Invariant: sha256 finds corruption, not malice, so pickles are also read by an unpickler that knows a dozen harmless
classes and refuses every other name. Only then does megatron-core, whose own reader would execute anything, see them.
"""

from __future__ import annotations

import io
import pickle
import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_huatuo.checkpoint.agreement import tell_all_ranks
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.manifest import read_manifest, sha256_file
from megatron_huatuo.storage.run_files import CHECKPOINT_KIND, STATE

_LIMIT_S = 7200.0  # how long one rank may read its files while the others wait
_CHECKPOINT = "torch.distributed.checkpoint"
_HARMLESS = {
    "builtins": {"set", "slice"},
    "collections": {"OrderedDict", "defaultdict"},
    "pathlib": {"PosixPath"},
    "torch": {"Size", "bfloat16", "bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"},
    "torch.serialization": {"_get_layout"},
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo", "_StoragePrefix"},
    f"{_CHECKPOINT}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.planner": {"BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
}


class _HarmlessUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is not on the list of harmless names")
        return super().find_class(module, name)


def _refuse(path: Path, error: Exception) -> IntegrityError:
    """torch's own message is long and advises to load without the guard; its name of the offender is what helps."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    reason = f"it names {found.group(1)}" if found else str(error).split("\n")[0]
    return IntegrityError(
        f"checkpoint would execute code or is damaged: {reason} ({path}). Do not load it; get it again from a source you "
        "trust."
    )


def verify_harmless(directory: Path) -> None:
    """Read every pickle of `directory`/state with the restricted unpickler. Raises IntegrityError naming the file."""
    state = directory / STATE
    common = state / "common.pt"
    try:
        torch.load(common, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError) as error:
        raise _refuse(common, error) from error
    metadata_path = state / ".metadata"
    try:
        with open(metadata_path, "rb") as handle:
            metadata = _HarmlessUnpickler(handle).load()
        _verify_objects(state, metadata)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AttributeError, ValueError, TypeError) as error:
        raise _refuse(metadata_path, error) from error


def _verify_objects(state: Path, metadata: Any) -> None:
    """All data lies beside the metadata; objects that lie between the tensors are pickles of their own."""
    for index, stored in metadata.storage_data.items():
        if Path(stored.relative_path).name != stored.relative_path:
            raise ValueError(f"it names a file outside of the checkpoint, {stored.relative_path}")
        described = metadata.state_dict_metadata.get(index.fqn)
        if type(described).__name__ != "BytesStorageMetadata":
            continue
        with open(state / stored.relative_path, "rb") as handle:
            handle.seek(stored.offset)
            torch.load(io.BytesIO(handle.read(stored.length)), map_location="cpu", weights_only=True)


def verify_checkpoint(
    directory: Path, *, rank: int = 0, world_size: int = 1, cancelled: threading.Event | None = None
) -> dict[str, Any]:
    """Check the share of files of one rank (each file is hashed once per job) and, on rank 0, the pickles.

    cancelled: as for `sha256_file`. Returns the manifest. Raises: IntegrityError naming the file.
    """
    manifest = read_manifest(directory, CHECKPOINT_KIND)
    recorded = manifest["files"]
    by_size = sorted(recorded, key=lambda name: -recorded[name]["bytes"])
    for name in by_size[rank::world_size]:
        path = directory / name
        expected = recorded[name]
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"] or sha256_file(path, cancelled) != expected["sha256"]:
            raise IntegrityError(
                f"checkpoint file is damaged or missing: {path}. Older checkpoints are tried; delete this one or restore it."
            )
    if rank == 0:
        verify_harmless(directory)
    return manifest


def verify_together(directory: Path) -> str | None:
    """Verify with all ranks; every rank gets the same answer: None, or the first error's text."""
    message: str | None = None
    try:
        verify_checkpoint(directory, rank=dist.get_rank(), world_size=dist.get_world_size())
    except (IntegrityError, OSError) as error:
        message = str(error)
    return next((text for text in tell_all_ranks(message, _LIMIT_S) if text), None)
