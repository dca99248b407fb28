"""A run from its settings to its end: start or resume, step, log, validate, save, stop.

Invariant: the state of a run is its checkpoints and its log. The same command starts it, resumes it, and finds it done.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_huatuo.dataset.batch import StepBatches
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.log import get_logger
from megatron_huatuo.train.inputs import Inputs
from megatron_huatuo.train.observers import metrics
from megatron_huatuo.train.observers.nonfinite import NonfiniteGuard
from megatron_huatuo.train.observers.profiling import StepProfiler
from megatron_huatuo.train.observers.reporter import Reporter
from megatron_huatuo.train.observers.watchdog import Watchdog
from megatron_huatuo.train.run import Run
from megatron_huatuo.train.saving import Saver
from megatron_huatuo.train.setup import is_log_rank
from megatron_huatuo.train.start import exclusive_run, start
from megatron_huatuo.train.step import StepResult, train_step
from megatron_huatuo.train.train_config import TrainConfig
from megatron_huatuo.train.validation import validate_on

_log = get_logger(__name__)


def train(config: TrainConfig, rows: PackedRows, inputs: Inputs, device: torch.device) -> str:
    """Run to the end or to a stop request; process groups exist, `config` is validated.

    Returns the final state, "finished" or "stopped". Raises: whatever failed, after status.json says it.
    """
    run_dir, began_s = Path(config.run_dir), time.time()
    with exclusive_run(run_dir):
        run: Run | None = None
        try:
            run = start(config, rows, inputs, device)
            state, reason = loop(run)
        except BaseException as error:
            metrics.write_failure(run_dir, error, began_s, run.iteration if run else None)
            raise
        if is_log_rank():
            metrics.write_status(run_dir, state, reason, run.iteration)
            run.stop.clear_files()
            _log.info("%s at step %d of %d: %s", state, run.iteration, run.train_iters, reason)
            _log.info(
                "mean learning rate received by source, as a share of the peak: %s",
                run.received.describe(config.optimizer.lr),
            )
    return state


def loop(run: Run) -> tuple[str, str]:
    """Steps until the last one or a stop request; returns the final state and its reason."""
    config, rank = run.config, dist.get_rank()
    batches = StepBatches(run.rows, run.layout, run.device, isolate_documents=config.data.isolate_documents)
    reporter, saver, guard = Reporter(run), Saver(run), NonfiniteGuard()
    profiler = StepProfiler(config.logging.profile_steps, run.run_dir, rank, run.device)
    watchdog = Watchdog(rank, 60 * config.runtime.distributed_timeout_minutes)
    stopped = False
    try:
        while run.iteration < run.train_iters and not stopped:
            with watchdog.watching(f"step {run.iteration + 1}"):
                profiler.before_step(run.iteration + 1)
                step_batches, data_wait_s = batches.next_step(run.consumed_train_samples)
                result = train_step(
                    run.training,
                    step_batches,
                    len(run.rows.source_names),
                    run.stop.requested(),
                    is_writing=saver.is_writing(),
                    data_wait_s=data_wait_s,
                )
            _guard(run, result, guard, saver, watchdog)
            run.iteration += 1
            run.consumed_train_samples += config.training.global_batch_size
            reporter.add(result)
            if result.updated:
                run.received.add(result.tokens_by_source, run.training.optimizer.param_groups[0]["lr"])
            profiler.after_step(run.iteration)
            with watchdog.watching(f"log, validation or save after step {run.iteration}", may_end=False):
                _log_and_validate(run, reporter)
                _save(run, saver, reporter, someone_writes=result.someone_writes)
            run.training.schedule.step(1)
            stopped = result.stop_requested
        with watchdog.watching("the last save", may_end=False):
            saver.save_last()
    finally:
        for part in (batches, reporter, profiler, watchdog):
            part.close()
    return ("stopped", _stop_reason(run)) if stopped else ("finished", "all steps done")


def _guard(run: Run, result: StepResult, guard: NonfiniteGuard, saver: Saver, watchdog: Watchdog) -> None:
    """A step that must not count stops all ranks; a save of sound weights that is still being written is not lost by it."""
    try:
        with watchdog.watching(f"look at the numbers of step {run.iteration + 1}"):
            guard.check(run, result)
    except HuatuoError:
        with watchdog.watching("the save before the stop", may_end=False):
            saver.finish()
        raise


def _log_and_validate(run: Run, reporter: Reporter) -> None:
    logging, last = run.config.logging, run.iteration == run.train_iters
    validation: dict[str, float] = {}
    if run.held_out and (last or (logging.validation_interval and run.iteration % logging.validation_interval == 0)):
        began = time.perf_counter()
        isolate = run.config.data.isolate_documents
        validation = {
            source.name: validate_on(run.training, source, run.layout, run.device, isolate) for source in run.held_out
        }
        reporter.pause("validation", time.perf_counter() - began)
    exam = _sit_exam(run, reporter, last=last)
    if run.iteration % logging.log_interval == 0 or last or validation or exam:
        reporter.write(validation, run.forgetting.measure(validation), exam)


def _sit_exam(run: Run, reporter: Reporter, *, last: bool) -> dict[str, float]:
    """The score of the small exam, where there is one and it is due."""
    interval = run.config.logging.exam.interval
    if run.exam is None or not (last or (interval and run.iteration % interval == 0)):
        return {}
    began = time.perf_counter()
    score = run.exam.score(run.exam.likelihoods(run.training, run.layout, run.device))
    reporter.pause("exam", time.perf_counter() - began)
    return score


def _save(run: Run, saver: Saver, reporter: Reporter, *, someone_writes: bool) -> None:
    """Publish a save that all ranks have written; begin the one that is due."""
    began = time.perf_counter()
    if saver.is_pending() and not someone_writes:
        saver.finish()
    interval = run.config.checkpoint.save_interval
    if interval and run.iteration % interval == 0 and run.iteration < run.train_iters:
        saver.save()
    reporter.pause("save", time.perf_counter() - began)


def _stop_reason(run: Run) -> str:
    """Why the run was asked to stop, whichever rank was asked."""
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, run.stop.reason)
    return next((reason for reason in reasons if reason), "unknown")
