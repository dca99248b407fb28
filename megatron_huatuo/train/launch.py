"""From settings to a running process group: what tools/train.py calls on every rank."""

from __future__ import annotations

import megatron_huatuo.parallel.import_core  # noqa: F401 (first)

import os
import sys
import traceback
from typing import NoReturn

import torch

from megatron_huatuo.config import dump_yaml
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import ConfigError, HuatuoError
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.core.attention_backend import engine_obstacle
from megatron_huatuo.parallel.host import enable_device, resolve_device
from megatron_huatuo.parallel.process_groups import destroy_process_groups, initialize_process_groups
from megatron_huatuo.train.inputs import open_inputs
from megatron_huatuo.train.loop import train
from megatron_huatuo.train.observers.received import rates_of_run
from megatron_huatuo.train.restarts import note_failure, refuse_to_repeat
from megatron_huatuo.train.rules import validate
from megatron_huatuo.train.train_config import TrainConfig

# Compute capability from which on GPUs multiply in fp8, by what shares one scale: L40 and H100; H100; Blackwell.
_CAPABILITY = {"tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}


def launch(config: TrainConfig, *, dry_run: bool = False, ranks: int | None = None) -> int:
    """Check everything, then train; returns the exit code.

    Without a launcher one process is its own world. ranks: of the run that a dry run is for; None: those of the launcher.
    Raises: HuatuoError before any process group starts; a failure after that ends the process here.
    """
    try:
        refuse_to_repeat()
        return _launch(config, dry_run=dry_run, ranks=ranks)
    except HuatuoError as error:
        note_failure(error)
        raise


def _launch(config: TrainConfig, *, dry_run: bool, ranks: int | None) -> int:
    rank, world_size = int(os.environ.get("RANK", "0")), ranks or int(os.environ.get("WORLD_SIZE", "1"))
    if not config.data.blend:
        raise ConfigError("wrong data.blend: got nothing, need a blend directory. Build one with tools/build_blend.py.")
    # Hashing a large blend takes a while: the ranks of a node share its files.
    share = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    rows = PackedRows(config.data.blend, verify=config.data.verify_hashes, share=share)
    train_iters = validate(config, seq_length=rows.seq_length, num_rows=len(rows), world_size=world_size)
    inputs = open_inputs(config, rows)
    if dry_run:
        if rank == 0:
            print(dump_yaml(config), end="")
            print(
                f"# {len(rows)} rows of {rows.seq_length} tokens, {train_iters} steps on {world_size} ranks: would start"
            )
            rates = rates_of_run(config)
            print("\n".join(f"# {line}" for line in rates.describe()))
            rates.warn_of_low_rates()
        return 0
    check_machine(config, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    device = enable_device(config.runtime.device)
    if config.runtime.device == "auto" and device.type == "cpu" and rank == 0:
        get_logger(__name__).warning(
            "runtime.device auto: torch sees no GPU, so this run trains on CPUs. Set it to cuda to refuse that, or to cpu."
        )
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    initialize_process_groups(config.parallel, device, config.runtime.distributed_timeout_minutes)
    try:
        train(config, rows, inputs, device)
    except BaseException as error:
        leave_at_once(error)
    if config.parallel.tp_comm_overlap:
        from megatron_huatuo.models.core.transformer_engine import destroy_overlap

        destroy_overlap()
    destroy_process_groups()
    return 0


def check_machine(config: TrainConfig, local_world_size: int) -> None:
    """Refuse what this machine cannot run; what `validate` cannot know. Must come before CUDA is used.

    Raises: ConfigError.
    """
    on_gpu = resolve_device(config.runtime.device) == "cuda"
    if on_gpu and local_world_size > torch.cuda.device_count():
        raise ConfigError(
            f"wrong number of ranks on this node: got {local_world_size}, need at most {torch.cuda.device_count()}, its GPUs. "
            "Change --nproc_per_node."
        )
    if config.parallel.tp_comm_overlap and (obstacle := engine_obstacle() if on_gpu else "the run is on the CPU"):
        raise ConfigError(
            f"wrong parallel.tp_comm_overlap: it needs GPUs and Transformer Engine, but {obstacle}. Switch it off, or run "
            "where both are (examples/slurm/Dockerfile builds it)."
        )
    if on_gpu and config.parallel.tensor_model_parallel_size > 1:
        # Kernels start in the order of their calls, so that communication overlaps with the matrix products after it.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if config.training.fp8 is not None:
        _check_fp8(config, on_gpu)


def _check_fp8(config: TrainConfig, on_gpu: bool) -> None:
    obstacle, needed = None, _CAPABILITY[config.training.fp8_recipe]
    if not on_gpu:
        obstacle = "the run is on the CPU"
    elif (missing := engine_obstacle()) is not None:
        obstacle = missing
    elif (found := torch.cuda.get_device_capability()) < needed:
        obstacle = f"recipe {config.training.fp8_recipe} needs compute capability {needed}, and the GPU has {found}"
    if obstacle is not None:
        raise ConfigError(
            f"wrong training.fp8: got {config.training.fp8!r}, but {obstacle}. Use a GPU that can with Transformer Engine "
            "(examples/slurm/Dockerfile builds it), or leave training.fp8 out."
        )


def leave_at_once(error: BaseException) -> NoReturn:
    """End a failed rank without destructors: they would wait for ranks that wait for this one."""
    note_failure(error)
    if isinstance(error, HuatuoError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)
