"""Write weights as safetensors, one tensor at a time.

Invariant: a file's header is written first, from names and shapes alone, so that memory is that of one tensor; the
bytes are hashed as they pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_huatuo.checkpoint.streaming import bytes_of, hashing_file, one_torch_thread
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.manifest import write_json

SHARD_BYTES = 5_000_000_000
_PIECE_BYTES = 8_000_000  # looked through, hashed and written while it is in the processor's cache
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@one_torch_thread()
def write_weights(
    directory: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Sequence[torch.Tensor]]],
    dtype: torch.dtype,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, dict[str, Any]]:
    """Write `model.safetensors` or numbered shards, and `model.safetensors.index.json`, which places every tensor.

    shapes: every tensor's shape, in the order in which `tensors` yields them, each as its row blocks.
    Returns {file name: {"bytes", "sha256"}}. Raises: DataError when a tensor comes out of order, mis-shaped or not finite.
    """
    shards = _plan_shards(shapes, dtype, shard_bytes)
    names = _file_names(len(shards))
    stream = iter(tensors)
    written = {}
    for name, shard in zip(names, shards, strict=True):
        written[name] = _write_shard(Path(directory) / name, {key: shapes[key] for key in shard}, stream, dtype)
    if (extra := next(stream, None)) is not None:
        raise DataError(f"wrong tensor: got {extra[0]!r} after the last one that the architecture has.")
    total = sum(_bytes(shape, dtype) for shape in shapes.values())
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
    tensors: Iterator[tuple[str, Sequence[torch.Tensor]]],
    dtype: torch.dtype,
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
            name, blocks = next(tensors)
            found = (sum(len(block) for block in blocks), *blocks[0].shape[1:])
            if name != expected or found != shape:
                raise DataError(f"wrong tensor: got {name!r} {list(found)}, need {expected!r} {list(shape)}.")
            for rows in _in_pieces(blocks):
                rows = rows.to(dtype)
                if not all(bound.isfinite() for bound in torch.aminmax(rows)):
                    raise DataError(
                        f"tensor {name!r} holds NaN or infinite values as {dtype}. Export an earlier checkpoint, or, where "
                        "the numbers are too large for float16, as bfloat16."
                    )
                file.write(bytes_of(rows.contiguous()))
    return file.described()


def _in_pieces(blocks: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Rows of all blocks, a piece at a time; so a conversion of their type takes little memory, too."""
    for block in blocks:
        yield from block.split(max(1, _PIECE_BYTES // block[0].nbytes))
