"""What one rank writes of a checkpoint: its tensors in megatron-core's distributed format, hashed on the way to disk.

Planning is collective; writing is not, so a share can be written by a process of its own, and a rank that fails or dies
in it keeps no other rank waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import IOBase
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import SerializationFormat, _write_item
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_huatuo.storage.hashed_file import hashed_file
from megatron_huatuo.storage.manifest import describe_files
from megatron_huatuo.storage.run_files import STATE

_COORDINATOR = 0


class _Items(FileSystemWriterAsync):
    """megatron-core's writer up to the point where it would copy tensors: keeps what to write, in place."""

    items: list[tuple[WriteItem, Any]]

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        self.prefix = plan.storage_data.prefix
        self.items = [(item, planner.resolve_data(item)) for item in plan.items]


@dataclass
class WrittenShare:
    """What a rank has written. files: {name relative to the checkpoint: {bytes, sha256}}."""

    results: list[WriteResult] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Share:
    """One rank's part of a planned checkpoint in the unfinished `directory`.

    items: what to write, tensors on the host. common: state that all ranks share, on the coordinator. metadata: where
    everything lies, on the coordinator.
    """

    directory: Path
    writer: _Items
    items: list[tuple[WriteItem, Any]]
    common: dict[str, Any] | None
    metadata: Metadata | None

    def write(self) -> WrittenShare:
        """Write and flush this rank's files. Raises: OSError."""
        written = WrittenShare()
        state = self.directory / STATE
        if self.items:
            name = f"{self.writer.prefix}0.distcp"
            with hashed_file(state / name, sync=True) as stream:
                written.results = [
                    _write_item(
                        self.writer.transforms,
                        cast(IOBase, stream),
                        _whole(data),
                        item,
                        name,
                        SerializationFormat.TORCH_SAVE,
                    )
                    for item, data in self.items
                ]
            written.files[f"{STATE}/{name}"] = stream.described()
        if self.common is not None:
            with hashed_file(state / "common.pt", sync=True) as stream:
                torch.save(self.common, cast(IO[bytes], stream))
            written.files[f"{STATE}/common.pt"] = stream.described()
            save_config(CheckpointingConfig("torch_dist", 1), str(state))
            written.files |= describe_files(self.directory, [f"{STATE}/metadata.json"])
        return written

    def write_metadata(self, written: list[WrittenShare]) -> dict[str, dict[str, Any]]:
        """On the coordinator: write where all ranks' data lies; {name: {bytes, sha256}}."""
        self.writer.finish(self.metadata, [share.results for share in written])
        return describe_files(self.directory, [f"{STATE}/.metadata"])


def plan_share(sharded: dict[str, Any], directory: Path) -> Share:
    """Divide a sharded state over the ranks, so that each tensor is written once. All ranks take part.

    Tensors on the host stay where they are: written later in this process, they must not change until then. Those on
    a GPU are copied to the host now.
    """
    sharded, common = save_preprocess(sharded, validate_access_integrity=True)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() > 1:
        strategy = get_default_save_sharded_strategy()
        FullyParallelSaveStrategyWrapper(strategy, group).apply_saving_parallelization(sharded)
    sharded, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
    writer = _Items(str(directory / STATE))
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    planned = save_state_dict_async_plan(
        mcore_to_pyt_state_dict(sharded, False), writer, None, _COORDINATOR, planner=planner
    )
    metadata = planned[0][1]
    is_coordinator = dist.get_rank() == _COORDINATOR
    return Share(directory, writer, _on_host(writer.items), common if is_coordinator else None, metadata)


def _on_host(items: list[tuple[WriteItem, Any]]) -> list[tuple[WriteItem, Any]]:
    moved = [
        (item, data.detach().to("cpu", non_blocking=True) if isinstance(data, torch.Tensor) else data)
        for item, data in items
    ]
    torch.cuda.synchronize()
    return moved


def _whole(data: Any) -> Any:
    """torch.save writes a view's whole storage: give a view one of its own size."""
    if not isinstance(data, torch.Tensor):
        return data
    is_view = data.untyped_storage().nbytes() != data.numel() * data.itemsize
    return data.clone() if is_view else data
