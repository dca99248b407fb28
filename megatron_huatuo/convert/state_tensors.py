"""The weights of a distributed checkpoint, read and written tensor by tensor, without a model and without ranks.

Invariant: what is written here is what `GPTModel.sharded_state_dict()` asks for: one global tensor a key, the layers
stacked on a leading axis, so every tensor-parallel, pipeline and data-parallel layout loads it. One file per layer and
key. The format is torch.distributed.checkpoint's (`.metadata` and `.distcp` files), with the two small files that
megatron-core adds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_huatuo.checkpoint.streaming import TwoBuffers, hashing_file, read_into, rows_a_piece
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.weight_rules import WeightRule
from megatron_huatuo.models.weight_table import each_weight, weight_rules


@contextlib.contextmanager
def _without_crc32() -> Iterator[None]:
    """Leave torch's own checksum out: the manifest's sha256 covers the file, and crc32 halves the speed."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class StateWriter:
    """Writes the `state/` directory of a checkpoint; `finish` makes it readable."""

    def __init__(self, directory: str | os.PathLike[str], num_layers: int) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._num_layers = num_layers
        self._metadata = Metadata(state_dict_metadata={}, storage_data={})
        self.files: dict[str, dict[str, Any]] = {}
        """Size and sha256 of every file written, by name."""

    def write(self, rule: WeightRule, layer: int, tensor: torch.Tensor) -> None:
        """Write the whole megatron tensor of one rule and layer."""
        layers = (self._num_layers,) if rule.per_layer else ()
        offsets = torch.Size([layer] * len(layers) + [0] * tensor.dim())
        chunk = tensor.detach().reshape((1,) * len(layers) + tensor.shape).contiguous()
        if chunk.untyped_storage().nbytes() != chunk.nbytes:
            chunk = chunk.clone()  # torch.save writes the whole storage behind a slice
        known = self._metadata.state_dict_metadata.setdefault(
            rule.key,
            TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(layers + tensor.shape), chunks=[]),
        )
        assert isinstance(known, TensorStorageMetadata)
        known.chunks.append(ChunkStorageMetadata(offsets, chunk.shape))
        name = f"{rule.key}.{layer}.distcp" if layers else f"{rule.key}.distcp"
        with _without_crc32(), hashing_file(self.directory / name) as file:
            torch.save(chunk, cast(IO[bytes], file))
        self.files[name] = file.described()
        self._metadata.storage_data[MetadataIndex(rule.key, offsets)] = _StorageInfo(name, 0, file.bytes)

    def finish(self) -> None:
        """Write what megatron-core reads first: the metadata of all tensors and the format's name."""
        common = io.BytesIO()
        torch.save({}, common)
        backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        backend |= {"common_backend": "torch", "common_backend_version": 1}
        contents = {
            "common.pt": common.getvalue(),
            "metadata.json": json.dumps(backend).encode(),
            ".metadata": pickle.dumps(self._metadata),
        }
        for name, content in contents.items():
            (self.directory / name).write_bytes(content)
            self.files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


class _Window(io.RawIOBase):
    """A range of a file as a file of its own, so that tensors are read straight into their memory."""

    def __init__(self, handle: IO[bytes], start: int, length: int) -> None:
        self._handle, self._start, self._length = handle, start, length
        handle.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._handle.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._length}[whence]
        self._handle.seek(self._start + origin + offset)
        return origin + offset

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer)[: max(0, self._length - self.tell())]
        return self._handle.readinto(room)  # type: ignore[attr-defined]


class StateReader:
    """Reads weights out of a `state/` directory, whatever layout saved it.

    The directory must have passed `checkpoint.integrity.verify_checkpoint`: `.metadata` is a pickle.
    """

    def __init__(self, directory: str | os.PathLike[str], architecture: Architecture) -> None:
        """Raises: IntegrityError naming a weight that is missing or has another shape than the architecture's."""
        self.directory = Path(directory)
        metadata = FileSystemReader(self.directory).read_metadata()
        self._tensors = cast(dict[str, TensorStorageMetadata], metadata.state_dict_metadata)
        self._files = {(index.fqn, tuple(index.offset or ())): info for index, info in _tensor_storage(metadata)}
        for rule in weight_rules(architecture):
            expected = ((architecture.num_layers,) if rule.per_layer else ()) + rule.shape
            found = self._tensors.get(rule.key)
            if found is None or tuple(found.size or ()) != expected:
                got = "nothing" if found is None else list(found.size)
                raise IntegrityError(
                    f"checkpoint does not fit its architecture: {rule.key!r} is {got}, need {list(expected)} "
                    f"({self.directory})."
                )
        self._architecture = architecture
        self._described: dict[tuple[str, tuple[int, ...]], tuple[torch.Tensor, int | None]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the weights are stored."""
        return self._tensors["embedding.word_embeddings.weight"].properties.dtype

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, some of its rows) of every weight, in the order of `weight_table.hf_shapes` and of the rows.

        Rows are valid until the next but one are asked for.
        """
        weights = [
            (rule, layer, self._tensors[rule.key].properties.dtype) for rule, layer in each_weight(self._architecture)
        ]
        rows_bytes = [_row_bytes(rule, dtype) for rule, _, dtype in weights]
        buffers = TwoBuffers(max(rows_a_piece(size) * size for size in rows_bytes))
        for (rule, layer, dtype), size in zip(weights, rows_bytes, strict=True):
            for name, ranges in rule.row_ranges(layer):
                for piece in _cut_ranges(ranges, rows_a_piece(size)):
                    lengths = [stop - start for start, stop in piece]
                    rows = buffers.take((sum(lengths), *rule.shape[1:]), dtype)
                    for (first, _), place in zip(piece, rows.split(lengths), strict=True):
                        self._fill(place, rule, layer, first)
                    yield name, rows

    def read(self, rule: WeightRule, layer: int) -> torch.Tensor:
        """The whole megatron tensor of one rule and layer.

        Raises: IntegrityError naming the file or the weight when a part of it is missing or damaged.
        """
        whole = torch.empty(rule.shape, dtype=self._tensors[rule.key].properties.dtype)
        self._fill(whole, rule, layer, 0)
        return whole

    def _fill(self, rows: torch.Tensor, rule: WeightRule, layer: int, first: int) -> None:
        """Read the rows of a megatron tensor that begin with row `first`."""
        lead = 1 if rule.per_layer else 0
        filled = 0
        for chunk in self._tensors[rule.key].chunks:
            if lead and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:
                continue
            (begin, *columns), (length, *widths) = chunk.offsets[lead:], chunk.sizes[lead:]
            start, stop = max(first, begin), min(first + len(rows), begin + length)
            if start >= stop:
                continue
            place = rows[start - first : stop - first]
            for offset, width in zip(columns, widths, strict=True):
                place = place[:, offset : offset + width]
            part = slice(start - begin, stop - begin)
            index = (layer - chunk.offsets[0], part) if lead else (part,)
            self._read_into(place, rule.key, tuple(chunk.offsets), index)
            filled += place.numel()
        if filled != rows.numel():
            raise IntegrityError(
                f"checkpoint lacks a part of layer {layer} of {rule.key!r}: got {filled} values, need {rows.numel()} "
                f"({self.directory})."
            )

    def _read_into(self, place: torch.Tensor, key: str, offsets: tuple[int, ...], index: tuple[Any, ...]) -> None:
        """Read a part of one stored piece into its place. index: of that part, consecutive rows, in the piece."""
        info = self._files[(key, offsets)]
        path = self.directory / info.relative_path
        try:
            with open(path, "rb", buffering=0) as handle:
                window: Any = _Window(handle, info.offset, info.length)
                described, begin = self._describe(window, key, offsets)
                part = described[index]
                if part.shape != place.shape or part.dtype != place.dtype:
                    raise ValueError(f"it holds {described.dtype} {list(described.shape)}")
                if begin is None or not part.is_contiguous():
                    window.seek(0)
                    place.copy_(torch.load(window, map_location="cpu", weights_only=True)[index])
                    return
                window.seek(begin + part.storage_offset() * part.itemsize)
                values = place if place.is_contiguous() else torch.empty(place.shape, dtype=place.dtype)
                read_into(window, values)
                if values is not place:
                    place.copy_(values)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise IntegrityError(f"checkpoint file is damaged or missing: {path} ({error}). Restore it.") from error

    def _describe(self, window: Any, key: str, offsets: tuple[int, ...]) -> tuple[torch.Tensor, int | None]:
        """A stored piece as a tensor without values, and where in its window they begin, if torch says so."""
        if (key, offsets) not in self._described:
            # On the meta device torch reads no values, and notes where in the file they begin.
            tensor = torch.load(window, map_location="meta", weights_only=True)
            if not isinstance(tensor, torch.Tensor):
                raise ValueError("it holds no tensor")
            begin = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
            self._described[(key, offsets)] = tensor, begin
        return self._described[(key, offsets)]


def _row_bytes(rule: WeightRule, dtype: torch.dtype) -> int:
    return torch.Size(rule.shape[1:]).numel() * dtype.itemsize


def _cut_ranges(ranges: list[tuple[int, int]], length: int) -> Iterator[list[tuple[int, int]]]:
    """The same ranges, cut into pieces that hold `length` together; the last holds what is left."""
    piece: list[tuple[int, int]] = []
    room = length
    for start, stop in ranges:
        while start < stop:
            end = min(stop, start + room)
            piece.append((start, end))
            room -= end - start
            start = end
            if not room:
                yield piece
                piece, room = [], length
    if piece:
        yield piece


def _tensor_storage(metadata: Metadata) -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
    return ((index, info) for index, info in metadata.storage_data.items() if index.offset is not None)
