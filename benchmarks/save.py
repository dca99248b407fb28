"""How long training stands still for a save that is written in the background, against one that is waited for.

Real data-parallel ranks train, and save by the engine's own `Saver` in both ways, in turn. A stall is what the training loop counts as a pause: planning the save and starting its writers, and later publishing
it; of a synchronous save, all of it. While the writers work, steps go on, and are slower where they share the processors:
`slower_steps_s` of a record says by how much, all steps of a save together. The first save of each kind is not counted.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measure import surroundings
from benchmarks.ranks import on_ranks
from benchmarks.recipe import build_recipe_blend
from benchmarks.settings import SaveBenchmark
from megatron_huatuo.checkpoint.save import SaveError
from megatron_huatuo.dataset.batch import Batch, StepBatches
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.hf_config import config_json
from megatron_huatuo.parallel.host import enable_device
from megatron_huatuo.parallel.process_groups import destroy_process_groups, initialize_process_groups
from megatron_huatuo.storage.manifest import write_json
from megatron_huatuo.storage.run_files import resolve_checkpoint
from megatron_huatuo.train.inputs import open_inputs
from megatron_huatuo.train.rules import validate
from megatron_huatuo.train.run import Run
from megatron_huatuo.train.saving import Saver
from megatron_huatuo.train.start import start
from megatron_huatuo.train.step import StepResult, train_step
from megatron_huatuo.train.train_config import TrainConfig

_BYTES_PER_PARAMETER = 16  # fp32: weight, the optimizer's copy of it, two moments
_VOCAB_SIZE, _LAYERS, _SEQ_LENGTH = 3072, 6, 128
_WAYS = ("synchronous", "asynchronous")


def run(settings: SaveBenchmark) -> list[dict[str, Any]]:
    """Stalls of asynchronous saves against synchronous ones, on the CPU."""
    with tempfile.TemporaryDirectory(dir=settings.directory) as name:
        folder = Path(name)
        build_recipe_blend(folder, documents=10_000, seq_length=_SEQ_LENGTH, mean_length=30)
        write_json(folder / "config.json", config_json(_architecture(settings.gigabytes), "float32"))
        measured = on_ranks(settings.ranks, _measure, name, settings.ranks, settings.saves)
    return [_record(measured[0], settings.ranks)]


def _architecture(gigabytes: float) -> Architecture:
    """The width at which 12.25 · h² parameters a layer and two tables of h columns are as many as asked for, in 64s."""
    square, linear = 12.25 * _LAYERS, 2 * _VOCAB_SIZE
    parameters = gigabytes * 1e9 / _BYTES_PER_PARAMETER
    width = (math.sqrt(linear**2 + 4 * square * parameters) - linear) / (2 * square)
    heads = max(1, round(width / 64))
    return Architecture(
        family="llama",
        num_layers=_LAYERS,
        hidden_size=64 * heads,
        ffn_hidden_size=176 * heads,
        num_attention_heads=heads,
        num_query_groups=heads,
        head_dim=64,
        vocab_size=_VOCAB_SIZE,
        norm_epsilon=1e-6,
        rope_theta=1e4,
        max_position_embeddings=_SEQ_LENGTH,
    )


def _measure(folder: str, ranks: int, saves: int) -> list[dict[str, Any]]:
    """On each rank: what `_save` says of every save that counts, with its format and its way."""
    torch.set_num_threads(1)
    config, rows = _config(folder, ranks), PackedRows(f"{folder}/blend")
    validate(config, seq_length=rows.seq_length, num_rows=len(rows), world_size=ranks)
    device = enable_device(config.runtime.device)
    initialize_process_groups(config.parallel, device)
    run = start(config, rows, open_inputs(config, rows), device)
    batches = StepBatches(rows, run.layout, device)
    step = partial(_step, run, batches.next_step(0)[0])
    batches.close()
    measured = []
    for number in range(saves + 1):
        for way in _WAYS:
            config.checkpoint.asynchronous = way == "asynchronous"
            figures = _save(run, step)
            if number > 0:
                measured.append({"way": way, **figures})
    destroy_process_groups()
    return measured


def _config(folder: str, ranks: int) -> TrainConfig:
    config = TrainConfig(run_dir=f"{folder}/run")
    config.model.hf = folder
    config.data.blend = f"{folder}/blend"
    config.training.precision = "fp32"
    config.training.micro_batch_size, config.training.global_batch_size = 1, ranks
    config.checkpoint.keep = 1
    config.logging.tensorboard = False
    config.runtime.device = "cpu"
    return config


def _step(run: Run, batches: list[Batch], *, is_writing: bool = False) -> StepResult:
    """A step of the training loop, always over the same rows."""
    result = train_step(run.training, batches, len(run.rows.source_names), False, is_writing=is_writing)
    run.iteration += 1
    run.training.schedule.step(1)
    return result


def _save(run: Run, step: Callable[..., StepResult]) -> dict[str, Any]:
    """A step, a save, and the steps until it is published, as the training loop has them.

    Returns stall_s, quiet_step_s of the step before, writing_steps_s of those after, all of the slowest rank; steps, the
    number of those after; bytes of the checkpoint. Raises: SaveError when it is not published.
    """
    _, quiet_step_s = _timed(step)
    saver, iteration = Saver(run), run.iteration
    dist.barrier()
    _, stall_s = _timed(saver.save)
    steps, writing_steps_s = 0, 0.0
    while saver.is_pending():
        result, seconds = _timed(partial(step, is_writing=saver.is_writing()))
        steps, writing_steps_s = steps + 1, writing_steps_s + seconds
        if not result.someone_writes:
            stall_s += _timed(saver.finish)[1]
    if run.last_saved != iteration:
        raise SaveError(f"checkpoint {iteration} was not saved: nothing to measure. Its reason is above.")
    slowest = torch.tensor([stall_s, quiet_step_s, writing_steps_s], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    figures = dict(zip(("stall_s", "quiet_step_s", "writing_steps_s"), slowest.tolist(), strict=True))
    checkpoint = resolve_checkpoint(run.checkpoints)
    return {
        **figures,
        "steps": steps,
        "bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()),
    }


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def _record(measured: list[dict[str, Any]], ranks: int) -> dict[str, Any]:
    """Medians; the ratio is that over the pairs of neighbouring saves."""
    theirs, ours = ([save for save in measured if save["way"] == way] for way in _WAYS)
    quiet_step_s = statistics.median(save["quiet_step_s"] for save in measured)
    return {
        "name": f"save: stall of a save of {ours[0]['bytes'] / 1e9:.2f} GB in the background, {ranks} ranks",
        "ours": statistics.median(save["stall_s"] for save in ours),
        "peer": statistics.median(save["stall_s"] for save in theirs),
        "peer_name": "the same save, waited for",
        # Saves wait for the disk, so idle processors are not a sign of a stolen core here.
        "ratio": statistics.median(
            mine["stall_s"] / other["stall_s"] for mine, other in zip(ours, theirs, strict=True)
        ),
        "unit": "s",
        "slower_steps_s": statistics.median(save["writing_steps_s"] - save["steps"] * quiet_step_s for save in ours),
        "runs": {"ours": ours, "peer": theirs},
        **surroundings(("torch", "megatron-core")),
    }
