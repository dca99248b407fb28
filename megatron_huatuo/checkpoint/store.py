"""Model and optimizer state out of a checkpoint directory, through megatron-core's dist_checkpointing.

Invariant: nothing of a checkpoint is loaded before all ranks have agreed that its files are sound and harmless.

The optimizer is saved in megatron-core's format "fully_reshardable", so that a run may go on in any layout; see
`optimizer_ranges`. Checkpoints of release 0.1 may hold "dp_reshardable", whose data-parallel size alone can change.
"""

from __future__ import annotations

import megatron_huatuo.parallel.import_core  # noqa: F401 (first)

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.api import CheckpointException

from megatron_huatuo.checkpoint import adam_state
from megatron_huatuo.checkpoint.integrity import verify_together
from megatron_huatuo.checkpoint.layout import set_aside
from megatron_huatuo.checkpoint.optimizer_ranges import use_ranges
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.run_files import STATE, complete_checkpoints, read_training_state, torn_checkpoints

FORMAT = "fully_reshardable"
_OLD_FORMAT = "dp_reshardable"


def weights_state(model_chunks: list[MegatronModule]) -> dict[str, Any]:
    """{"model": …} or {"model0": …, "model1": …} with the chunks' sharded tensors, without pickled extra state."""
    names = ["model"] if len(model_chunks) == 1 else [f"model{index}" for index in range(len(model_chunks))]
    return {
        name: {key: value for key, value in chunk.sharded_state_dict().items() if not isinstance(value, ShardedObject)}
        for name, chunk in zip(names, model_chunks, strict=True)
    }


def optimizer_state(
    optimizer: MegatronOptimizer,
    weights: Mapping[str, Any],
    optimizer_format: str = FORMAT,
    *,
    is_loading: bool = False,
) -> Any:
    """Sharded state of the optimizer beside its model's `weights_state`."""
    adam_state.leave_step_out_of_gathered_state()
    use_ranges()
    return optimizer.sharded_state_dict(
        dict(weights) if len(weights) > 1 else weights["model"],
        is_loading=is_loading,
        metadata={"distrib_optim_sharding_type": optimizer_format},
    )


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
    except CheckpointException as error:  # torch's: no Exception, and its text is the tracebacks of all ranks
        first = next((str(failure) for failure, _ in error.failures.values()), str(error)).splitlines()[0]
        raise IntegrityError(
            f"checkpoint does not fit the run: {first} ({directory}). Resume with the version and the settings that it was "
            "saved with."
        ) from error


def load_training_state(
    directory: str | os.PathLike[str], model_chunks: list[MegatronModule], optimizer: MegatronOptimizer
) -> dict[str, Any]:
    """Load weights and optimizer of a verified checkpoint; returns its training.json.

    Raises: IntegrityError when the optimizer was saved in the old format under another TP·PP layout.
    """
    root = Path(directory)
    training = read_training_state(root)
    layout = {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size(),
    }
    if training["optimizer_format"] == _OLD_FORMAT and training["layout"] != layout:
        raise IntegrityError(
            f"checkpoint cannot change its layout: saved as {training['layout']} in the old format {_OLD_FORMAT}, need "
            f"{layout} ({root}). Resume with the saved layout, put a file STOP into the run directory, and resume what is "
            "saved then: it can change."
        )
    adam_state.give_fresh_state(optimizer)
    sharded = weights_state(model_chunks)
    sharded["optimizer"] = optimizer_state(optimizer, sharded, training["optimizer_format"], is_loading=True)
    loaded = _load(root, sharded)
    _put_weights(model_chunks, loaded)
    optimizer.load_state_dict(loaded["optimizer"])
    adam_state.give_each_parameter_its_step(optimizer)
    adam_state.keep_own_settings(optimizer)
    return training


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
    damaged: list[Path] = []
    for name in found[0]:
        directory = Path(name)
        problem = verify_together(directory)
        if problem is None:
            # Out of the way only now, when there is a sound one to go on from: retention must not count damaged ones.
            for other in damaged if dist.get_rank() == 0 else ():
                report(f"damaged checkpoint set aside as {set_aside(other).name}")
            return directory
        damaged.append(directory)
        report(problem)
    if found[0]:
        raise IntegrityError(
            f"no sound checkpoint among {len(found[0])} in {checkpoints}. Restore one from a copy, or start a new run."
        )
    return None
