"""Model and optimizer state into a checkpoint directory and out of it, through megatron-core's dist_checkpointing.

Invariant: a checkpoint takes its name only after every rank has written and hashed its share and the manifest lies
beside the data; a failure on one rank is a failure on all, with nothing under a final name.

Optimizer formats: "dp_reshardable" is quick and can change the data-parallel size only; "fully_reshardable" ("portable"
in settings) can change every dimension, and gathers the fp32 state into host memory (12 bytes a parameter for each
data-parallel rank at save and load).
"""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule

from megatron_huatuo.checkpoint import adam_state
from megatron_huatuo.checkpoint.integrity import verify_together
from megatron_huatuo.checkpoint.layout import (
    KIND,
    STATE,
    complete_checkpoints,
    iteration_name,
    torn_checkpoints,
    unfinished_directory,
    write_latest,
)
from megatron_huatuo.errors import HuatuoError, IntegrityError
from megatron_huatuo.storage.atomic import fsync_directory
from megatron_huatuo.storage.manifest import read_json, read_manifest, sha256_file, write_json, write_manifest

# The stock queue for a writer's results lives in a manager process of its own, whose start costs 5 s a rank; a
# synchronous save hands its results over inside one process.
filesystem_async._get_write_results_queue = queue.SimpleQueue

PORTABLE = "fully_reshardable"
ROUTINE = "dp_reshardable"


class SaveError(HuatuoError):
    """A checkpoint that could not be written; the run's earlier checkpoints are untouched."""


def weights_state(model_chunks: list[MegatronModule]) -> dict[str, Any]:
    """{"model": …} or {"model0": …, "model1": …} with the chunks' sharded tensors, without pickled extra state."""
    names = ["model"] if len(model_chunks) == 1 else [f"model{index}" for index in range(len(model_chunks))]
    return {
        name: {key: value for key, value in chunk.sharded_state_dict().items() if not isinstance(value, ShardedObject)}
        for name, chunk in zip(names, model_chunks, strict=True)
    }


def load_weights(directory: str | os.PathLike[str], model_chunks: list[MegatronModule]) -> None:
    """Load the weights of a verified checkpoint directory into `model_chunks`, for any layout.

    Raises: IntegrityError when a tensor is missing or has another shape.
    """
    loaded = _load(Path(directory), weights_state(model_chunks))
    _put_weights(model_chunks, loaded)


def _put_weights(model_chunks: list[MegatronModule], loaded: Mapping[str, Any]) -> None:
    names = ["model"] if len(model_chunks) == 1 else [f"model{index}" for index in range(len(model_chunks))]
    for name, chunk in zip(names, model_chunks, strict=True):
        missing, unexpected = chunk.load_state_dict(loaded[name], strict=False)
        missing = [key for key in missing if not key.endswith("_extra_state")]
        if missing or unexpected:
            raise IntegrityError(
                f"checkpoint does not fit the model: missing {missing[:4]}, unexpected {list(unexpected)[:4]}. "
                "Use the architecture that the checkpoint was saved with."
            )


def _load(directory: Path, sharded: dict[str, Any]) -> dict[str, Any]:
    path = str(directory / STATE)
    strategy = get_default_load_sharded_strategy(path)
    if dist.get_world_size() > 1:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        strategy = FullyParallelLoadStrategyWrapper(strategy, group)
    try:
        return dist_checkpointing.load(sharded, path, strategy)
    except dist_checkpointing.core.CheckpointingException as error:
        raise IntegrityError(f"checkpoint does not fit the model: {error} ({directory}).") from error


def load_training_state(
    directory: str | os.PathLike[str], model_chunks: list[MegatronModule], optimizer: MegatronOptimizer
) -> dict[str, Any]:
    """Load weights and optimizer of a verified checkpoint; returns its training.json.

    Raises: IntegrityError when the optimizer was saved in the routine format under another TP·PP layout.
    """
    root = Path(directory)
    training = read_json(root / "training.json")
    layout = {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size(),
    }
    if training["optimizer_format"] == ROUTINE and training["layout"] != layout:
        raise IntegrityError(
            f"checkpoint cannot change its layout: saved as {training['layout']} in the routine format, need {layout} "
            f"({root}). Resume with the saved layout, put a file SAVE_PORTABLE into the run directory, and stop after it."
        )
    adam_state.leave_step_out_of_gathered_state()
    adam_state.give_fresh_state(optimizer)
    sharded = weights_state(model_chunks)
    weights = dict(sharded)
    sharded["optimizer"] = optimizer.sharded_state_dict(
        weights if len(weights) > 1 else weights["model"],
        is_loading=True,
        metadata={"distrib_optim_sharding_type": training["optimizer_format"]},
    )
    loaded = _load(root, sharded)
    _put_weights(model_chunks, loaded)
    optimizer.load_state_dict(loaded["optimizer"])
    adam_state.give_each_parameter_its_step(optimizer)
    return training


def save_checkpoint(
    checkpoints: str | os.PathLike[str],
    iteration: int,
    model_chunks: list[MegatronModule],
    optimizer: MegatronOptimizer | None,
    training: Mapping[str, Any],
    write_companions: Callable[[Path], None],
    *,
    optimizer_format: str = PORTABLE,
) -> Path:
    """Write one checkpoint with all ranks and publish it; returns its directory.

    training: content of training.json (iteration, consumed_train_samples, fingerprints…).
    write_companions: writes config.yaml, architecture.json and tokenizer/ into a directory (called on rank 0).
    Raises: SaveError on every rank when one of them fails.
    """
    root = Path(checkpoints)
    directory = unfinished_directory(root, iteration)
    _on_all_ranks("prepare the directory", lambda: _prepare(directory) if dist.get_rank() == 0 else None)
    sharded = weights_state(model_chunks)
    if optimizer is not None:
        adam_state.leave_step_out_of_gathered_state()
        weights = dict(sharded)
        sharded["optimizer"] = optimizer.sharded_state_dict(
            weights if len(weights) > 1 else weights["model"],
            metadata={"distrib_optim_sharding_type": optimizer_format},
        )
    _on_all_ranks("write the state", lambda: _save_state(sharded, directory / STATE))
    content = {**training, "iteration": iteration, "optimizer_format": optimizer_format if optimizer else None}
    return publish(root, iteration, content, write_companions)


def _prepare(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    for torn in torn_checkpoints(directory.parent):
        shutil.rmtree(torn)
    (directory / STATE).mkdir(parents=True)


def _save_state(sharded: dict[str, Any], path: Path) -> None:
    strategy = get_default_save_sharded_strategy()
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() > 1:
        strategy = FullyParallelSaveStrategyWrapper(strategy, group)
    dist_checkpointing.save(sharded, str(path), strategy)


def publish(root: Path, iteration: int, training: Mapping[str, Any], write_companions: Callable[[Path], None]) -> Path:
    """Hash what lies in the unfinished directory (files shared out over the ranks), write the manifest, take the name."""
    directory = unfinished_directory(root, iteration)

    def companions() -> None:
        if dist.get_rank() == 0:
            write_json(directory / "training.json", dict(training))
            write_companions(directory)

    _on_all_ranks("write its companions", companions)

    def hash_share() -> dict[str, Any]:
        names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
        return {
            name: {"bytes": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)}
            for name in names[dist.get_rank() :: dist.get_world_size()]
        }

    shares = _on_all_ranks("hash its files", hash_share)
    target = root / iteration_name(iteration)

    def take_name() -> None:
        if dist.get_rank() != 0:
            return
        files = {name: entry for share in shares for name, entry in share.items()}
        write_manifest(directory, KIND, {"iteration": iteration}, dict(sorted(files.items())))
        if target.exists():
            shutil.rmtree(target)
        os.rename(directory, target)
        fsync_directory(root)
        write_latest(root, iteration)

    _on_all_ranks("publish it", take_name)
    return target


def _on_all_ranks(step: str, action: Callable[[], Any]) -> list[Any]:
    """Run one step of a save on every rank; returns all ranks' results. Raises SaveError on all when one failed."""
    failure, result = None, None
    try:
        result = action()
    except Exception as error:  # whatever broke, the other ranks must hear of it
        failure = f"rank {dist.get_rank()} could not {step}: {type(error).__name__}: {error}"
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (failure, result))
    if found := next((text for text, _ in outcomes if text), None):
        raise SaveError(f"checkpoint not saved: {found}. Earlier checkpoints are untouched; free space and go on.")
    return [result for _, result in outcomes]


def newest_sound_checkpoint(checkpoints: str | os.PathLike[str], report: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint whose files all match, agreed by all ranks; damaged ones are reported and passed over.

    Raises: IntegrityError when there are complete checkpoints and none is sound.
    """
    found: list[list[str]] = [[]]
    if dist.get_rank() == 0:
        found = [[str(path) for path in complete_checkpoints(checkpoints)]]
        for torn in torn_checkpoints(checkpoints):
            report(f"unfinished checkpoint passed over: {torn}")
    dist.broadcast_object_list(found, src=0)
    for name in found[0]:
        directory = Path(name)
        problem = verify_together(directory)
        if problem is None:
            return directory
        report(problem)
    if found[0]:
        raise IntegrityError(
            f"no sound checkpoint among {len(found[0])} in {checkpoints}. Restore one from a copy, or start a new run."
        )
    return None


def checkpoint_manifest(directory: Path) -> dict[str, Any]:
    """Manifest of a checkpoint directory."""
    return read_manifest(directory, KIND)
