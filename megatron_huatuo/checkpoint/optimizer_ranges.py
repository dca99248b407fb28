"""The optimizer's state in a form that any layout can load, without a rank ever holding more than its own part of it.

A rank of megatron-core's distributed optimizer keeps a flat range of each bucket, hence of each parameter a flat range of
its local tensor. Such a range of a tensor of N dimensions is at most 2N - 1 rectangles: the rest of a row, whole rows, the
beginning of a row, and so on inwards. Each becomes a `ShardedTensor` at its place in the parameter's global tensor, so what
is written are the names and tensors of megatron-core's `fully_reshardable` format, cut otherwise: its own loader reads
them, and checkpoints that it has written can be read here. megatron-core 0.16 gathers the whole state on every
data-parallel rank for both, 12 bytes per parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

Shape = tuple[int, ...]


def rectangles(shape: Shape, start: int, end: int) -> list[tuple[Shape, Shape]]:
    """Values `start` to `end` of a tensor of `shape`, counted row by row, as (offset, shape) of rectangles in their order."""
    if start >= end:
        return []
    if len(shape) <= 1:
        return [((start,), (end - start,))] if shape else [((), ())]
    inner = shape[1:]
    row_values = math.prod(inner)
    first, skipped = divmod(start, row_values)
    last, rest = divmod(end, row_values)
    if first == last:
        return _in_row(first, rectangles(inner, skipped, rest))
    found = _in_row(first, rectangles(inner, skipped, row_values)) if skipped else []
    first += skipped > 0
    if first < last:
        found.append(((first, *(0 for _ in inner)), (last - first, *inner)))
    return found + _in_row(last, rectangles(inner, 0, rest))


def _in_row(row: int, found: list[tuple[Shape, Shape]]) -> list[tuple[Shape, Shape]]:
    return [((row, *offset), (1, *shape)) for offset, shape in found]


def use_ranges() -> None:
    """Let the distributed optimizer write and read its `fully_reshardable` format by ranges. Applied once per process."""
    DistributedOptimizer.sharded_param_state_fully_reshardable = _sharded_ranges
    DistributedOptimizer.load_parameter_state_from_fully_reshardable = _load_ranges


def _sharded_ranges(
    self: Any,
    model_sharded_state_dict: dict[str, Any],
    is_loading: bool = False,
    metadata: dict[str, Any] | None = None,
) -> dict[int, dict[str, list[ShardedTensor]]]:
    """{number of the parameter on this rank: {"param", "exp_avg", "exp_avg_sq": its rectangles, in the order of the range}}."""
    sharded, _ = extract_sharded_tensors_and_factories(model_sharded_state_dict)
    by_parameter = {part.data: part for part in nested_values(sharded)}
    state = {}
    for number, (parameter, start, end) in enumerate(_ranges(self)):
        tensors = self._get_main_param_and_optimizer_states(parameter)
        state[number] = {
            name: _pieces(by_parameter[parameter], f"optimizer.state.{name}", flat, start, end, is_loading)
            for name, flat in tensors.items()
            if name != "step"  # one for all, in the groups of the optimizer
        }
    return state


@torch.no_grad()
def _load_ranges(self: Any, state: dict[int, dict[str, list[torch.Tensor]]]) -> None:
    for number, (parameter, _, _) in enumerate(_ranges(self)):
        flat = {name: torch.cat([piece.flatten() for piece in pieces]) for name, pieces in state[number].items()}
        self._set_main_param_and_optimizer_states(parameter, flat)


def _ranges(optimizer: Any) -> Iterator[tuple[torch.nn.Parameter, int, int]]:
    """Each parameter of which this rank holds values, and which ones: [start, end) of its local tensor, flat."""
    for of_dtype in optimizer.gbuf_ranges:
        for buckets in of_dtype.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, ranges["param"].start, ranges["param"].end


def _pieces(
    part: ShardedTensor | ShardedTensorFactory, prefix: str, flat: torch.Tensor, start: int, end: int, is_loading: bool
) -> list[ShardedTensor]:
    """`flat`, values `start` to `end` of the parameter that `part` places in the model, as rectangles of the global tensor.

    A factory makes several tensors of a parameter (the halves of a gated layer): asked with a tensor without memory, their
    places in it say which values each takes.
    """
    key = f"{prefix}.{part.key}"
    shape_only = torch.empty(part.data.shape, dtype=flat.dtype, device="meta")
    if isinstance(part, ShardedTensorFactory):
        tensors = list(nested_values(replace(part, key=key, data=shape_only).build()))
    else:
        tensors = [replace(part, key=key, data=shape_only, dtype=flat.dtype)]
    found = []
    for tensor in sorted(tensors, key=lambda tensor: tensor.data.storage_offset()):
        assert tensor.data.is_contiguous(), f"{tensor.key}: not whole rows of its parameter"
        first = tensor.data.storage_offset()
        taken, axes = max(start, first), tensor.prepend_axis_num
        for offset, shape in rectangles(tensor.local_shape, taken - first, min(end - first, tensor.data.numel())):
            values, local_shape = math.prod(shape), (1,) * axes + shape
            found.append(
                replace(
                    tensor,
                    data=None if is_loading else flat[taken - start : taken - start + values].view(local_shape),
                    local_shape=local_shape,
                    global_offset=tuple(map(sum, zip(tensor.global_offset, (0,) * axes + offset, strict=True))),
                    axis_fragmentations=None,
                    prepend_axis_num=0,
                    replica_id=(*tensor.replica_id[:2], 0),  # no other data-parallel rank has these values
                )
            )
            taken += values
    return found
