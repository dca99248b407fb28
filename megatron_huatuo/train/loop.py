"""A run from its settings to its end: start or resume, step, log, validate, save, stop.

Invariant: the state of a run is its checkpoints and its log. The same command starts it, resumes it, and finds it done.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_huatuo.checkpoint.layout import iteration_of, prune
from megatron_huatuo.checkpoint.store import (
    PORTABLE,
    ROUTINE,
    SaveError,
    load_training_state,
    save_checkpoint,
)
from megatron_huatuo.config import dump_yaml, to_plain
from megatron_huatuo.dataset.batch import StepBatches
from megatron_huatuo.dataset.packed_rows import PackedRows
from megatron_huatuo.dataset.sampler import BatchLayout
from megatron_huatuo.errors import DataError, HuatuoError
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.log import get_logger
from megatron_huatuo.model.architecture import Architecture
from megatron_huatuo.model.flops import count_parameters, flops_per_token, peak_flops_per_s
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.manifest import write_json
from megatron_huatuo.train import metrics
from megatron_huatuo.train.config import TrainConfig, one_pass
from megatron_huatuo.train.resume import find_checkpoint, fingerprints
from megatron_huatuo.train.setup import Training, build_training, is_log_rank
from megatron_huatuo.train.step import StepResult, train_step
from megatron_huatuo.train.stop import StopRequest
from megatron_huatuo.train.validation import HeldOut, validate_on

_PORTABLE_LIMIT_BYTES = 4 << 30


@dataclass
class Run:
    """One run on one rank."""

    config: TrainConfig
    rows: PackedRows
    training: Training
    layout: BatchLayout
    device: torch.device
    train_iters: int
    held_out: list[HeldOut]
    stop: StopRequest
    iteration: int = 0
    consumed_train_samples: int = 0
    last_saved: int | None = None
    writer: metrics.MetricsWriter | None = None
    window: list[StepResult] = field(default_factory=list)
    data_wait_s: float = 0.0
    started: float = 0.0

    @property
    def run_dir(self) -> Path:
        """Directory of the run."""
        return Path(self.config.run_dir)

    @property
    def checkpoints(self) -> Path:
        """Directory of its checkpoints."""
        return self.run_dir / "checkpoints"


def train(config: TrainConfig, rows: PackedRows, device: torch.device, train_iters: int) -> str:
    """Run to the end or to a stop request; process groups exist, `config` is validated.

    Returns the final state, "finished" or "stopped". Raises: HuatuoError; status.json then says failed and why.
    """
    run_dir = Path(config.run_dir)
    with exclusive_run(run_dir):
        try:
            run = start(config, rows, device, train_iters)
            state, reason = _loop(run)
        except BaseException as error:
            if is_log_rank() and run_dir.is_dir():
                metrics.write_failure(run_dir, error)
            raise
        if is_log_rank():
            metrics.write_status(run_dir, state, reason, run.iteration)
            run.stop.clear_files()
            get_logger(__name__).info("%s at step %d of %d: %s", state, run.iteration, run.train_iters, reason)
    return state


def start(config: TrainConfig, rows: PackedRows, device: torch.device, train_iters: int) -> Run:
    """Build the run and load its newest sound checkpoint, if it has one."""
    architecture = config.model.architecture()
    _check_vocabulary(architecture, rows)
    found = find_checkpoint(config, architecture, rows)
    decay_iters = config.schedule.decay_iters or one_pass(config.training.global_batch_size, len(rows))
    layout = BatchLayout(
        config.training.global_batch_size,
        config.training.micro_batch_size,
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )
    tokenizer = rows.tokenizer["sha256"]
    held_out = [
        HeldOut(source.name, source.path_prefix, rows.seq_length, tokenizer, rows.eos_id)
        for source in config.data.validation
    ]
    training = build_training(config, architecture, device, decay_iters, first_weights=found is None)
    stop = StopRequest(Path(config.run_dir), polls_files=is_log_rank())
    run = Run(config, rows, training, layout, device, train_iters, held_out, stop)
    if found is not None:
        directory, state = found
        load_training_state(directory, training.chunks, training.optimizer)
        run.iteration = run.last_saved = iteration_of(directory)
        run.consumed_train_samples = state["consumed_train_samples"]
    training.schedule.step(run.iteration)
    if is_log_rank():
        _announce(run)
        _open_run_directory(run)
    dist.barrier()
    return run


def _open_run_directory(run: Run) -> None:
    with atomic_write(run.run_dir / "config.yaml", "w") as handle:
        handle.write(dump_yaml(run.config))
    metrics.write_status(run.run_dir, "running", "", run.iteration)
    metrics.cut_log_back(run.run_dir, run.iteration)
    logging = run.config.logging
    run.writer = metrics.MetricsWriter(
        run.run_dir,
        tensorboard=logging.tensorboard,
        wandb_project=logging.wandb_project,
        config=to_plain(run.config),
    )


@contextlib.contextmanager
def exclusive_run(run_dir: Path) -> Iterator[None]:
    """One job a run directory: rank 0 holds its lock. Raises: DataError on every rank when another job has it."""
    with contextlib.ExitStack() as stack:
        problem: list[str | None] = [None]
        if is_log_rank():
            run_dir.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(exclusive(run_dir))
            except DataError as error:
                problem = [str(error)]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise DataError(problem[0])
        yield


def _check_vocabulary(architecture: Architecture, rows: PackedRows) -> None:
    size = rows.tokenizer["vocab_size"]
    if size > architecture.vocab_size:
        raise DataError(
            f"tokenizer does not fit the model: got {size} ids, but the embedding has {architecture.vocab_size} rows. "
            "Index the data with the model's own tokenizer."
        )


def _announce(run: Run) -> None:
    log = get_logger(__name__)
    parallel = run.config.parallel
    log.info(
        "%s parameters on %d %s ranks (TP %d, PP %d, DP %d), %s",
        f"{count_parameters(run.training.architecture):,}",
        dist.get_world_size(),
        run.device.type,
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        run.layout.data_parallel_size,
        run.config.training.precision,
    )
    log.info("%d rows of %d tokens in %d steps", len(run.rows), run.rows.seq_length, run.train_iters)


def _loop(run: Run) -> tuple[str, str]:
    config = run.config
    batches = StepBatches(run.rows, run.layout, run.device, isolate_documents=config.data.isolate_documents)
    run.started = time.perf_counter()
    state, reason = "finished", "all steps done"
    try:
        while run.iteration < run.train_iters:
            micro_batches = batches.next_step(run.consumed_train_samples)
            run.data_wait_s += batches.data_wait_s
            result = train_step(run.training, micro_batches, len(run.rows.source_names), run.stop.requested())
            if not result.updated:
                _handle_nonfinite(run, result)
            run.iteration += 1
            run.consumed_train_samples += config.training.global_batch_size
            run.window.append(result)
            _log_validate_save(run, result)
            run.training.schedule.step(1)
            if result.stop_requested:
                state, reason = "stopped", run.stop.reason or "request on another rank"
                break
        if run.last_saved != run.iteration:
            _save(run, final=True)
    finally:
        batches.close()
        if run.writer is not None:
            run.writer.close()
    return state, reason


def _log_validate_save(run: Run, result: StepResult) -> None:
    config, last = run.config, run.iteration == run.train_iters
    interval = config.logging.validation_interval
    validation: dict[str, float] = {}
    if run.held_out and (last or (interval and run.iteration % interval == 0)):
        validation = {
            source.name: validate_on(run.training, source, run.layout, run.device, config.data.isolate_documents)
            for source in run.held_out
        }
    if run.iteration % config.logging.log_interval == 0 or last or validation:
        _log(run, validation)
    save_interval = config.checkpoint.save_interval
    if not last and save_interval and run.iteration % save_interval == 0:
        _save(run, final=False)


def _handle_nonfinite(run: Run, result: StepResult) -> None:
    """Name iteration, ranks, rows and sources; then stop or go on, as training.on_nonfinite says."""
    rows = [
        row for index in result.nonfinite_microbatches for row in run.layout.rows(run.consumed_train_samples, index)
    ]
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, rows)
    per_rank = {rank: found for rank, found in enumerate(seen) if found}
    named = sorted({row for found in per_rank.values() for row in found if row < len(run.rows)})
    sources = sorted({run.rows.source_names[source] for row in named for source, _ in run.rows.documents_of(row)})
    message = (
        f"loss or gradient is not finite at iteration {run.iteration + 1}: ranks {sorted(per_rank) or 'all (gradient)'}, "
        f"rows {named[:8]}, sources {sources}, gradient norm {result.grad_norm}"
    )
    if run.config.training.on_nonfinite == "stop":
        raise HuatuoError(f"{message}. No update was made; lower optimizer.lr, or set training.on_nonfinite to skip.")
    if is_log_rank():
        get_logger(__name__).warning("%s; step skipped", message)


def _log(run: Run, validation: dict[str, float]) -> None:
    now = time.perf_counter()
    steps, elapsed_s = len(run.window), now - run.started
    tokens_per_step = run.config.training.global_batch_size * run.rows.seq_length
    step_time_s = elapsed_s / steps
    per_rank = tokens_per_step / step_time_s / dist.get_world_size()
    flops_per_s = per_rank * flops_per_token(run.training.architecture, run.rows.seq_length)
    peak = peak_flops_per_s(torch.cuda.get_device_name(run.device)) if run.device.type == "cuda" else None
    losses = torch.tensor([result.loss_by_source for result in run.window], dtype=torch.float64).sum(0).tolist()
    counts = torch.tensor([result.tokens_by_source for result in run.window]).sum(0).tolist()
    entry: dict[str, Any] = {
        "iteration": run.iteration,
        "consumed_train_samples": run.consumed_train_samples,
        "lm_loss": sum(losses) / max(1, sum(counts)),
        "loss_by_source": {
            name: loss / count for name, loss, count in zip(run.rows.source_names, losses, counts, strict=True) if count
        },
        "trained_tokens_by_source": dict(zip(run.rows.source_names, counts, strict=True)),
        "grad_norm": run.window[-1].grad_norm,
        "learning_rate": run.training.optimizer.param_groups[0]["lr"],
        "tokens_per_s_per_gpu": per_rank,
        "model_tflops_per_s_per_gpu": flops_per_s / 1e12,
        "mfu": flops_per_s / peak if peak else None,
        "padding_fraction": _padding_fraction(run, steps),
        "step_time_s": step_time_s,
        "data_wait_s": run.data_wait_s / steps,
        "seconds": {part: sum(result.seconds[part] for result in run.window) / steps for part in run.window[0].seconds},
        "memory_gib": metrics.memory_gib(run.device),
        "eta_s": step_time_s * (run.train_iters - run.iteration),
        "skipped_steps": sum(not result.updated for result in run.window),
    }
    if validation:
        entry["validation_loss"] = validation
    if run.writer is not None:
        run.writer.write(entry)
        metrics.show_progress(metrics.progress_line(entry, run.train_iters))
    run.window, run.data_wait_s, run.started = [], 0.0, time.perf_counter()


def _padding_fraction(run: Run, steps: int) -> float:
    """Share of padding in the rows of the last `steps` steps, empty rows of the last batch included."""
    last = run.consumed_train_samples
    first = last - steps * run.config.training.global_batch_size
    filled = run.rows.tokens_in(first, last)
    return 1.0 - filled / ((last - first) * run.rows.seq_length)


def _save(run: Run, *, final: bool) -> None:
    """Write a checkpoint. A failed routine save is reported and the run goes on; a failed last one is an error."""
    portable = torch.tensor([int(run.stop.portable_requested())])
    dist.broadcast(portable, src=0)
    state_bytes = 12 * count_parameters(run.training.architecture)
    wanted = run.config.checkpoint.portable
    is_portable = final or bool(portable) or (state_bytes < _PORTABLE_LIMIT_BYTES if wanted is None else wanted)
    parallel = run.config.parallel
    training = {
        "consumed_train_samples": run.consumed_train_samples,
        "fingerprints": fingerprints(run.config, run.training.architecture, run.rows),
        "layout": {
            "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
            "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
            "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        },
        "source_names": run.rows.source_names,
    }
    began = time.perf_counter()
    _set_forward_hooks(run, enabled=False)
    try:
        save_checkpoint(
            run.checkpoints,
            run.iteration,
            run.training.chunks,
            run.training.optimizer,
            training,
            lambda directory: _write_companions(run, directory),
            optimizer_format=PORTABLE if is_portable else ROUTINE,
        )
    except SaveError as error:
        if final:
            raise
        if is_log_rank():
            get_logger(__name__).error("%s", error)
        return
    finally:
        _set_forward_hooks(run, enabled=True)
        run.started += time.perf_counter() - began  # a save is no part of the steps around it
    run.last_saved = run.iteration
    if is_log_rank():
        prune(run.checkpoints, run.config.checkpoint.keep, run.config.checkpoint.keep_every)


def _set_forward_hooks(run: Run, *, enabled: bool) -> None:
    """Overlapped parameter gathering updates weights in forward hooks; a save needs them gathered now."""
    if run.config.parallel.overlap_param_gather:
        for chunk in run.training.wrapped:
            if enabled:
                chunk.enable_forward_pre_hook()
            else:
                chunk.disable_forward_pre_hook(param_sync=True)


def _write_companions(run: Run, directory: Path) -> None:
    """What makes a checkpoint complete beside its tensors."""
    write_json(directory / "architecture.json", run.training.architecture.to_dict())
    shutil.copyfile(run.run_dir / "config.yaml", directory / "config.yaml")
    (directory / "tokenizer").mkdir()
    for name, file in load_tokenizer(run.rows.tokenizer["path"]).files.items():
        shutil.copyfile(file, directory / "tokenizer" / name)
