"""Write weights as safetensors, some rows at a time.

Invariant: a file's header is written first, from names and shapes alone, so that memory is that of a few rows; the
bytes are hashed as they pass.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_huatuo.checkpoint.streaming import ahead, bytes_of, hashing_file, in_pieces, is_finite, one_torch_thread
from megatron_huatuo.errors import DataError
from megatron_huatuo.log import progress
from megatron_huatuo.storage.manifest import write_json

SHARD_BYTES = 5_000_000_000
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@one_torch_thread()
def write_weights(
    directory: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    weights: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, dict[str, Any]]:
    """Write `model.safetensors` or numbered shards, and `model.safetensors.index.json`, which places every tensor.

    weights: (name, rows), the rows of every tensor in their order, tensors in the order of `shapes`. A second thread asks
    for the next rows while those before are written.
    Returns {file name: {"bytes", "sha256"}}. Raises: DataError when rows come out of order, mis-shaped or not finite.
    """
    shards = _plan_shards(shapes, dtype, shard_bytes)
    names = _file_names(len(shards))
    written = {}
    total = sum(_bytes(shape, dtype) for shape in shapes.values())
    with (
        contextlib.closing(ahead(_in_type(weights, dtype))) as stream,
        progress(total=total, description="writing weights", unit="B", unit_scale=True) as bar,
    ):
        for name, shard in zip(names, shards, strict=True):
            written[name] = _write_shard(
                Path(directory) / name, {key: shapes[key] for key in shard}, stream, dtype, bar
            )
        if (extra := next(stream, None)) is not None:
            raise DataError(f"wrong tensor: got {extra[0]!r} after the last one that the architecture has.")
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(Path(directory) / "model.safetensors.index.json", index)
    return written


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _plan_shards(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = _bytes(shape, dtype)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_shard(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    weights: Iterator[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    bar: Any,
) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + _bytes(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with hashing_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for expected, shape in shapes.items():
            missing = shape[0]
            while missing:
                name, rows = next(weights, ("nothing", torch.empty(0)))
                if name != expected or rows.shape[1:] != shape[1:] or len(rows) > missing:
                    raise DataError(
                        f"wrong tensor: got {name!r} {list(rows.shape)}, need {missing} rows of {expected!r} {list(shape)}."
                    )
                file.write(bytes_of(rows))
                missing -= len(rows)
                bar.update(rows.nbytes)
    return file.described()


def _in_type(weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The same rows, a piece at a time, so that a conversion of their type takes little memory, too."""
    for name, rows in weights:
        for piece in in_pieces(rows):
            piece = piece.to(dtype).contiguous()
            if not is_finite(piece):
                raise DataError(
                    f"tensor {name!r} holds NaN or infinite values as {dtype}. Export an earlier checkpoint, or, where "
                    "the numbers are too large for float16, as bfloat16."
                )
            yield name, piece
