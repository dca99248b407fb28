"""The beginning of a run: its lock, its parts, the checkpoint that it goes on from, and what it says about itself."""

from __future__ import annotations

import contextlib
import gc
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_huatuo.checkpoint.store import load_training_state
from megatron_huatuo.config import dump_yaml
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.flops import count_parameters
from megatron_huatuo.models.core.isolation import prove_isolation
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.run_files import CONFIG, iteration_of
from megatron_huatuo.train.inputs import Inputs
from megatron_huatuo.train.observers import metrics
from megatron_huatuo.train.observers.environment import record_start
from megatron_huatuo.train.observers.forgetting import Forgetting
from megatron_huatuo.train.observers.fused_pieces import fused_pieces
from megatron_huatuo.train.observers.received import ReceivedRates
from megatron_huatuo.train.resume import find_checkpoint
from megatron_huatuo.train.rules import one_pass
from megatron_huatuo.train.run import Run
from megatron_huatuo.train.setup import build_training, is_log_rank
from megatron_huatuo.train.stop import StopRequest
from megatron_huatuo.train.train_config import TrainConfig
from megatron_huatuo.train.validation import validate_on

_log = get_logger(__name__)
_SEE_S = 10.0  # how long a file may take to be seen on other nodes


def start(config: TrainConfig, rows: PackedRows, inputs: Inputs, device: torch.device) -> Run:
    """Build a run and load its newest sound checkpoint, if it has one; all ranks take part."""
    architecture = config.model.architecture()
    found = find_checkpoint(config, architecture, rows)
    iteration = iteration_of(found[0]) if found else 0
    consumed = found[1]["consumed_train_samples"] if found else 0
    steps_per_pass, train_iters = plan_steps(config, len(rows), iteration, consumed)
    layout = BatchLayout(
        config.training.global_batch_size,
        config.training.micro_batch_size,
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )
    if config.parallel.tp_comm_overlap:
        _initialize_overlap(config, architecture, rows.seq_length)
    training = build_training(
        config, architecture, device, config.schedule.span(steps_per_pass), first_weights=found is None
    )
    if found is not None:
        load_training_state(found[0], training.chunks, training.optimizer)
    training.schedule.step(iteration)
    received = ReceivedRates(rows.source_names, found[1].get("learning_rate_by_source") if found else None)
    forgetting = Forgetting(config.data.validation, found[1].get("forgetting") if found else None)
    stop = StopRequest(Path(config.run_dir), polls_files=is_log_rank())
    run = Run(
        config, rows, training, layout, device, inputs.held_out, stop, train_iters, received, forgetting, inputs.exam,
        iteration, consumed,
    )  # fmt: skip
    run.last_saved = iteration if found else None
    if is_log_rank():
        _announce(run)
        _open_run_directory(run)
    _measure_base(run)
    record_start(run.run_dir, run.iteration, _prove_isolation(run))
    gc.collect()
    gc.freeze()  # else each full collection, one a save at least, looks through all modules and the model: 0.4 s
    dist.barrier()
    return run


def _measure_base(run: Run) -> None:
    """Loss of the first weights on general text, before the first step."""
    wanted = [source for source in run.held_out if source.name in run.forgetting.unmeasured]
    if not wanted:
        return
    if run.iteration:
        raise ConfigError(
            f"wrong data.validation: source {wanted[0].name!r} is general since now, but the run is at step {run.iteration} and "
            "its first weights were not measured. Leave `general` out, or start a new run_dir."
        )
    isolate = run.config.data.isolate_documents
    losses = {source.name: validate_on(run.training, source, run.layout, run.device, isolate) for source in wanted}
    run.forgetting.begin(losses)
    if is_log_rank():
        _log.info("loss of the first weights: %s", ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))


def _prove_isolation(run: Run) -> dict[str, Any] | None:
    """What the attention of this rank's first chunk was found to do; None where rows are one sequence on request."""
    if not run.config.data.isolate_documents:
        return None
    found = prove_isolation(run.training.chunks[0], run.device)
    return found.to_plain() if found else None


@contextlib.contextmanager
def exclusive_run(run_dir: Path) -> Iterator[None]:
    """One job a run directory: rank 0 holds its lock. Raises: HuatuoError on every rank when another job has it, or it
    cannot be written, or ranks do not share it."""
    with contextlib.ExitStack() as stack:
        problem: list[str | None] = [None]
        if is_log_rank():
            try:
                run_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(run_dir))
            except DataError as error:
                problem = [str(error)]
            except OSError as error:
                problem = [
                    f"run directory cannot be written: {error} (run_dir {run_dir}). Fix its rights, or choose another."
                ]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise DataError(problem[0])
        _require_shared(run_dir)
        yield


def _require_shared(run_dir: Path) -> None:
    """Ranks that do not share the run directory would each keep their part of a checkpoint. Raises: DataError on all."""
    token = [secrets.token_hex(8)]
    dist.broadcast_object_list(token, src=0)
    path = run_dir / f".shared.{token[0]}"
    if dist.get_rank() == 0:
        path.touch()
    dist.barrier()
    deadline = time.monotonic() + _SEE_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    seen = [(path.exists(), socket.gethostname())] * dist.get_world_size()
    dist.all_gather_object(seen, seen[0])
    if dist.get_rank() == 0:
        path.unlink()
    blind = [f"rank {rank} on {host}" for rank, (sees, host) in enumerate(seen) if not sees]
    if blind:
        raise DataError(
            f"run directory is not shared: {blind[0]} ({len(blind)} ranks in all) does not see after {_SEE_S:g} s what rank 0 "
            f"on {seen[0][1]} has written (run_dir {run_dir}). Put it on a file system that all nodes share."
        )


def _initialize_overlap(config: TrainConfig, architecture: Architecture, seq_length: int) -> None:
    from megatron_huatuo.models.core.transformer_engine import initialize_overlap

    initialize_overlap(
        tokens=config.training.micro_batch_size * seq_length,
        hidden_size=architecture.hidden_size,
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        fp8=config.training.fp8 is not None,
    )


def _open_run_directory(run: Run) -> None:
    with atomic_write(run.run_dir / CONFIG, "w") as handle:
        handle.write(dump_yaml(run.config))
    metrics.write_status(run.run_dir, "running", "", run.iteration)
    metrics.cut_log_back(run.run_dir, run.iteration)


def plan_steps(config: TrainConfig, num_rows: int, iteration: int, consumed: int) -> tuple[int, int]:
    """(steps of the whole pass, last step) from the rows that are left: batch size and blend may have changed."""
    batch, wanted = config.training.global_batch_size, config.training.train_iters
    whole_pass = iteration + one_pass(batch, max(0, num_rows - consumed))
    if wanted is not None and wanted > whole_pass and is_log_rank():
        _log.warning(
            "training.train_iters is %d, but the rows end at step %d with %d rows per step: the run ends there",
            *(wanted, whole_pass, batch),
        )
    return whole_pass, whole_pass if wanted is None else min(wanted, whole_pass)


def _announce(run: Run) -> None:
    parallel = run.config.parallel
    _log.info(
        "%s parameters on %d %s ranks (TP %d, PP %d, DP %d), %s",
        f"{count_parameters(run.training.architecture):,}",
        dist.get_world_size(),
        run.device.type,
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        run.layout.data_parallel_size,
        run.config.training.number_formats,
    )
    for piece, obstacle in fused_pieces(run.training.chunks[0], run.device.type).items():
        _log.info("%s: %s", piece, "on" if obstacle is None else f"off, {obstacle}")
    if run.exam is not None:
        _log.info("exam of %d questions, %d left out", len(run.exam.questions), run.exam.left_out)
    _log.info("%d rows of %d tokens in %d steps", len(run.rows), run.rows.seq_length, run.train_iters)
