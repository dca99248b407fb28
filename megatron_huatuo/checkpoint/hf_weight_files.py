"""Read the weights of a Hugging Face directory, slice by slice.

Invariant: only tensors are read (safetensors, or `.bin` with `weights_only=True`), never code; memory is that of the
slice asked for. Every fault is reported with the tensor's and the file's name.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_huatuo.checkpoint.streaming import in_pieces, is_finite, read_into
from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_family
from megatron_huatuo.models.family import Family
from megatron_huatuo.models.weight_table import hf_shapes
from megatron_huatuo.storage.lfs_pointer import refuse_pointer
from megatron_huatuo.storage.manifest import read_json

_LAYOUTS = (
    ("model.safetensors.index.json", None),
    ("model.safetensors", ".safetensors"),
    ("pytorch_model.bin.index.json", None),
    ("pytorch_model.bin", ".bin"),
)
# What holds weights under other names, or in other formats.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pth", ".pt", ".ckpt", ".h5", ".msgpack")
# Buffers that old checkpoints carry: they follow from the architecture.
_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attn.bias", "alibi_mask")

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_TIED = ("lm_head.weight", "model.embed_tokens.weight")


def open_weights(hf_directory: str | os.PathLike[str], architecture: Architecture) -> WeightFiles:
    """Weight files whose names and shapes are those of the architecture. Raises: DataError, IntegrityError."""
    files = WeightFiles(hf_directory, get_family(architecture.family))
    files.check(hf_shapes(architecture), tied=_TIED if architecture.tied_embeddings else None)
    return files


class WeightFiles:
    """The weight files of one Hugging Face directory, safetensors or `.bin`, sharded or not."""

    def __init__(self, directory: str | os.PathLike[str], family: Family) -> None:
        """family: knows under which other names the files may have its weights, and which are none of its own.

        Raises: IntegrityError when there are no weights, or an index names a file that is absent or torn.
        """
        self.directory = Path(directory)
        self.file_of = self._find()
        self._bin: tuple[Path, Mapping[str, Any]] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[torch.dtype, int]] = {}
        for path in sorted(set(self.file_of.values())):
            found = self._read_shapes(path)
            self._shapes |= {name: shape for name, shape in found.items() if self.file_of.get(name) == path}
        for name, path in self.file_of.items():
            if name not in self._shapes:
                raise IntegrityError(f"tensor is missing: the index places {name!r} in {path}. Download it again.")
        self._stored = self._names(family)
        self.file_of = {name: self.file_of[stored] for name, stored in self._stored.items()}
        self._shapes = {name: self._shapes[stored] for name, stored in self._stored.items()}

    def _names(self, family: Family) -> dict[str, str]:
        """{the family's name of a tensor: its name in the files}, without what is none of the family's."""
        left_out = [name for name in self.file_of if name.startswith(family.left_out_weights)]
        if left_out:
            parts = ", ".join(sorted({name.removeprefix("model.").split(".")[0] for name in left_out}))
            get_logger(__name__).warning(
                "%d tensors of %s are left out of %s: the text part is read", len(left_out), parts, self.directory
            )
        found: dict[str, str] = {}
        for stored in self.file_of:
            if stored.startswith(family.left_out_weights):
                continue
            began = next((old for old in family.renamed_weights if stored.startswith(old)), None)
            name = stored if began is None else family.renamed_weights[began] + stored.removeprefix(began)
            if name in found:
                raise DataError(f"tensor is there twice: {found[name]!r} and {stored!r} in {self.directory}. Keep one.")
            found[name] = stored
        return found

    def _find(self) -> dict[str, Path]:
        present = [(name, suffix) for name, suffix in _LAYOUTS if (self.directory / name).is_file()]
        named = {name: {name} if suffix else set(self._weight_map(name).values()) for name, suffix in present}
        if any(files != named[present[0][0]] for files in named.values()):  # an index may name the one whole file
            raise DataError(
                f"two sets of weights: got {' and '.join(name for name, _ in present)} in {self.directory}, need one of them. "
                "Move the other away; which of the two is the model, only its publisher can say "
                "(hf download takes --exclude '*.bin')."
            )
        for name, suffix in present:
            path = self.directory / name
            if suffix == ".safetensors":
                with _open_safetensors(path) as file:
                    return dict.fromkeys(file.keys(), path)
            if suffix == ".bin":
                return dict.fromkeys(_load_bin(path), path)
            found = {tensor: self.directory / file for tensor, file in self._weight_map(name).items()}
            for tensor, file in found.items():
                if file.parent != self.directory or not file.is_file():
                    raise IntegrityError(
                        f"shard is missing: {path.name} places {tensor!r} in {file}. Download it again."
                    )
            return found
        others = ", ".join(sorted(path.name for path in self.directory.glob("*") if path.suffix in _WEIGHT_SUFFIXES))
        raise IntegrityError(
            f"no weights in {self.directory}: got {others or 'none'}, need model.safetensors or pytorch_model.bin, whole or "
            "with an index. Download the model in that form."
        )

    def _weight_map(self, name: str) -> dict[str, str]:
        path = self.directory / name
        index = read_json(path)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise IntegrityError(f"shard index has no 'weight_map': {path}. Download it again.")
        return dict(index["weight_map"])

    def _read_shapes(self, path: Path) -> dict[str, tuple[int, ...]]:
        if path.suffix == ".safetensors":
            header, begin = _read_header(path)
            for name, entry in header.items():
                if entry["dtype"] not in _DTYPES:
                    raise DataError(
                        f"unsupported type of tensor {name!r}: got {entry['dtype']}, need {' or '.join(_DTYPES)} ({path}). "
                        "Quantised weights are not read: take the model that they were made from."
                    )
                self._places[name] = _DTYPES[entry["dtype"]], begin + entry["data_offsets"][0]
            return {name: tuple(entry["shape"]) for name, entry in header.items()}
        return {name: tuple(tensor.shape) for name, tensor in self._bin_tensors(path).items()}

    def _bin_tensors(self, path: Path) -> Mapping[str, torch.Tensor]:
        if self._bin is None or self._bin[0] != path:
            self._bin = (path, _load_bin(path))
        return self._bin[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first tensor's values."""
        name = next(iter(self.file_of))
        return self.read(name, 0, 0, 0).dtype

    def check(self, expected: Mapping[str, tuple[int, ...]], *, tied: tuple[str, str] | None = None) -> None:
        """Compare names and shapes with what an architecture needs.

        tied: (tensor, its source); the tensor may be there as well, but must then equal its source.
        Raises: DataError naming the first tensor that is missing, extra, mis-shaped or not tied as promised.
        """
        unknown = [name for name in self.file_of if name not in expected and not name.endswith(_DERIVED)]
        for name, shape in expected.items():
            if name not in self.file_of:
                others = f", which has {unknown[0]!r}" if unknown else ""
                raise DataError(
                    f"tensor is missing: {name!r} in {self.directory}{others}. Check that config.json belongs to it."
                )
            if self._shapes[name] != shape:
                raise DataError(
                    f"wrong shape of tensor {name!r}: got {list(self._shapes[name])}, need {list(shape)} "
                    f"({self.file_of[name]}). Check that config.json belongs to it."
                )
        if tied and tied[0] in unknown:
            unknown.remove(tied[0])
            self._check_tied(*tied)
        if unknown:
            raise DataError(
                f"unknown tensor: {unknown[0]!r} in {self.file_of[unknown[0]]} ({len(unknown)} in all). "
                "Check that config.json belongs to these weights."
            )

    def _check_tied(self, name: str, source: str) -> None:
        if not torch.equal(self._whole(name), self._whole(source)):
            raise DataError(
                f"tensor {name!r} differs from {source!r}, though config.json ties them ({self.file_of[name]}). "
                "Set tie_word_embeddings to false."
            )

    def _whole(self, name: str) -> torch.Tensor:
        return self.read(name, 0, 0, self._shapes[name][0])

    def read(self, name: str, axis: int, start: int, stop: int, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Range start … stop-1 of a tensor along axis 0 or 1, as stored.

        out: memory to read into, of the range's shape and type.
        Raises: DataError naming tensor and file when a value is NaN or infinite; IntegrityError when the file is incomplete.
        """
        path, shape = self.file_of[name], self._shapes[name]
        if axis == 1 and (start, stop) == (0, shape[1]):
            axis, start, stop = 0, 0, shape[0]
        if path.suffix == ".safetensors" and axis == 0:
            values = self._read_rows(name, start, stop, out)
        else:
            values = self._read_range(name, axis, start, stop)
            if out is not None:
                self._check_type(name, values.dtype, out)
                values = out.copy_(values)
            self._check_finite(name, values)
        return values

    def _read_range(self, name: str, axis: int, start: int, stop: int) -> torch.Tensor:
        index = (slice(start, stop),) if axis == 0 else (slice(None), slice(start, stop))
        path = self.file_of[name]
        if path.suffix != ".safetensors":
            return self._bin_tensors(path)[self._stored[name]][index]
        # Opened anew each time: an open file keeps every page that was read in memory.
        with _open_safetensors(path) as file:
            return file.get_slice(self._stored[name])[index]

    def _check_type(self, name: str, dtype: torch.dtype, out: torch.Tensor) -> None:
        if out.dtype != dtype:
            raise DataError(
                f"tensor {name!r} has another type than its neighbours: got {dtype}, need {out.dtype} "
                f"({self.file_of[name]}). Save the model in one type."
            )

    def _check_finite(self, name: str, values: torch.Tensor) -> None:
        if not is_finite(values):
            raise DataError(f"tensor {name!r} holds NaN or infinite values ({self.file_of[name]}). Download it again.")

    def _read_rows(self, name: str, start: int, stop: int, out: torch.Tensor | None) -> torch.Tensor:
        """Read rows into memory; half the cost of touching a mapped file page by page."""
        path, (dtype, begin) = self.file_of[name], self._places[self._stored[name]]
        values = torch.empty((stop - start, *self._shapes[name][1:]), dtype=dtype) if out is None else out
        self._check_type(name, dtype, values)
        with open(path, "rb", buffering=0) as file:
            file.seek(begin + start * torch.Size(self._shapes[name][1:]).numel() * dtype.itemsize)
            for piece in in_pieces(values):
                try:
                    read_into(file, piece)
                except EOFError as error:
                    raise IntegrityError(
                        f"file is incomplete or not safetensors: {path} ({error}). Download it again."
                    ) from error
                self._check_finite(name, piece)
        return values


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        refuse_pointer(path)
        raise IntegrityError(f"file is incomplete or not safetensors: {path} ({error}). Download it again.") from error


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(entries of the tensors, where their bytes begin), after the library has checked that the file is whole."""
    with _open_safetensors(path), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _load_bin(path: Path) -> Mapping[str, torch.Tensor]:
    """Tensors of a `.bin` file; anything but tensors is refused. Mapped into memory rather than read, unless torch before
    1.6 wrote it, which was no zip archive."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        refuse_pointer(path)
        raise IntegrityError(
            f"file is incomplete, or holds more than tensors: {path} ({error}). It was not loaded; convert it to safetensors."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise IntegrityError(f"file holds more than tensors: {path}. Convert it to safetensors.")
    return content
