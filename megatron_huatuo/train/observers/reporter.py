"""One entry of log.jsonl: what the steps since the last one did, how fast, and who was late."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from megatron_huatuo.log import get_logger, now
from megatron_huatuo.models.core.flops import flops_per_token, peak_flops_per_s
from megatron_huatuo.train.observers import metrics
from megatron_huatuo.train.observers.stragglers import StragglerWatch
from megatron_huatuo.train.run import Run
from megatron_huatuo.train.setup import is_log_rank
from megatron_huatuo.train.step import StepResult

_NO_PAUSE_S = 1e-3  # looking whether a save is due
_NOTE_EVERY_S = 10.0


class Reporter:
    """Gathers steps and writes an entry when asked. Every rank has one, so that all agree on the clock; one writes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._window: list[StepResult] = []
        self._started = time.perf_counter()
        self._pauses: dict[str, float] = {}
        self._steps, self._paused_s = 0, 0.0  # of all entries
        self._noted = time.monotonic()
        self._stragglers = StragglerWatch(run.config.parallel.pipeline_model_parallel_size)
        self._named: int | None = None
        self._writer = None
        if is_log_rank():
            self._writer = metrics.MetricsWriter(
                run.run_dir,
                tensorboard=run.config.logging.tensorboard,
                wandb_project=run.config.logging.wandb_project,
                config=run.config,
                iteration=run.iteration,
            )

    def add(self, result: StepResult) -> None:
        """Count one step."""
        self._window.append(result)
        self._steps += 1
        self._stragglers.add(result.seconds_to_reduction)

    def pause(self, reason: str, seconds: float) -> None:
        """Time that training waited for a "save", a "validation" or an "exam": no part of the steps."""
        self._started += seconds
        self._paused_s += seconds
        self._pauses[reason] = self._pauses.get(reason, 0.0) + seconds

    def write(self, validation: Mapping[str, float], increase: Mapping[str, float], exam: Mapping[str, float]) -> None:
        """Write the entry of the steps since the last one, and begin anew. increase: of the loss on general text."""
        if self._writer is not None:
            entry = self._entry(validation, increase)
            if exam:
                entry["exam"] = dict(exam)
            self._writer.write(entry)
            metrics.show_progress(metrics.progress_line(entry, self._run.train_iters))
            self._note_iteration()
        self._window, self._started, self._pauses = [], time.perf_counter(), {}

    def _note_iteration(self) -> None:
        """status.json follows the run, every few seconds; what a failing rank has written there stays."""
        if time.monotonic() - self._noted >= _NOTE_EVERY_S:
            self._noted = time.monotonic()
            metrics.update_status(self._run.run_dir, self._run.iteration)

    def close(self) -> None:
        """Flush everything."""
        if self._writer is not None:
            self._writer.close()

    def _entry(self, validation: Mapping[str, float], increase: Mapping[str, float]) -> dict[str, Any]:
        run, steps = self._run, len(self._window)
        step_time_s = (time.perf_counter() - self._started) / steps
        per_rank = run.config.training.global_batch_size * run.rows.seq_length / step_time_s / dist.get_world_size()
        flops_per_s = per_rank * flops_per_token(run.training.architecture, run.rows.seq_length)
        memory = self._window[-1].memory_gib
        peak = peak_flops_per_s(torch.cuda.get_device_name(run.device)) if run.device.type == "cuda" else None
        entry = {
            "iteration": run.iteration,
            "time": now(),
            "consumed_train_samples": run.consumed_train_samples,
            **self._losses(),
            "grad_norm": self._window[-1].grad_norm,
            "learning_rate": run.training.optimizer.param_groups[0]["lr"],
            "tokens_per_s_per_gpu": per_rank,
            "model_tflops_per_s_per_gpu": flops_per_s / 1e12,
            "mfu": flops_per_s / peak if peak else None,
            "padding_fraction": padding_fraction(run, steps),
            "step_time_s": step_time_s,
            "data_wait_s": max(_mean([result.data_wait_s for result in self._window])),
            "seconds": self._seconds(step_time_s),
            "pauses_s": {reason: seconds for reason, seconds in self._pauses.items() if seconds > _NO_PAUSE_S},
            "memory_gib": max(memory),
            "fullest_rank": memory.index(max(memory)),
            "eta_s": (step_time_s + self._paused_s / self._steps) * (run.train_iters - run.iteration),
            "skipped_steps": sum(not result.updated for result in self._window),
        }
        if straggler := self._name_straggler():
            entry["straggler"] = straggler
        if validation:
            entry["validation_loss"] = dict(validation)
            if increase:
                entry["general_loss_increase"] = dict(increase)
        return entry

    def _seconds(self, step_time_s: float) -> dict[str, float]:
        """Mean time of each part of a step on this rank; together they are `step_time_s`."""
        parts = {
            part: sum(step.seconds[part] for step in self._window) / len(self._window)
            for part in self._window[0].seconds
        }
        return {**parts, "other": step_time_s - sum(parts.values())}

    def _name_straggler(self) -> dict[str, Any] | None:
        """For the log; said aloud when it is another one than before."""
        straggler = self._stragglers.find()
        if straggler is not None and straggler.rank != self._named:
            get_logger(__name__).warning(
                "rank %d keeps the others waiting: %.3f s to the gradient reduction, %.3f s on the quickest rank",
                *(straggler.rank, straggler.seconds, straggler.fastest_s),
            )
        self._named = straggler.rank if straggler else None
        return asdict(straggler) if straggler else None

    def _losses(self) -> dict[str, Any]:
        """Means over the trained tokens of the steps that were not skipped."""
        names = self._run.rows.source_names
        kept = [result for result in self._window if result.updated] or self._window
        losses = torch.tensor([result.loss_by_source for result in kept], dtype=torch.float64).sum(0).tolist()
        counts = torch.tensor([result.tokens_by_source for result in kept]).sum(0).tolist()
        return {
            "lm_loss": sum(losses) / max(1, sum(counts)),
            "loss_by_source": {
                name: loss / count for name, loss, count in zip(names, losses, counts, strict=True) if count
            },
            "trained_tokens_by_source": dict(zip(names, counts, strict=True)),
        }


def _mean(values: list[list[float]]) -> list[float]:
    """Of [steps][ranks], for each rank."""
    return [sum(of_rank) / len(values) for of_rank in zip(*values, strict=True)]


def padding_fraction(run: Run, steps: int) -> float:
    """Share of padding in the rows of the last `steps` steps, empty rows of the last batch included."""
    last = run.consumed_train_samples
    first = last - steps * run.config.training.global_batch_size
    return 1.0 - run.rows.tokens_in(first, last) / ((last - first) * run.rows.seq_length)
