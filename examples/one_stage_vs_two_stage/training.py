"""One arm under one seed: its runs, its held-out losses, its exam. Each job is a process of its own on one core."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

import torch
from experiment import SIZES, SOURCES, Arm, Size, Stage, draw_base_blend, draw_blend, quietly, write_exam

from megatron_huatuo.convert.average import average_checkpoints
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import GenerationSettings
from megatron_huatuo.parallel.host import enable_device
from megatron_huatuo.parallel.process_groups import destroy_process_groups, initialize_process_groups
from megatron_huatuo.storage.manifest import read_json, write_json
from megatron_huatuo.storage.run_files import CHECKPOINTS, complete_checkpoints, read_log, resolve_checkpoint
from megatron_huatuo.train.inputs import open_held_out
from megatron_huatuo.train.launch import launch
from megatron_huatuo.train.setup import build_training
from megatron_huatuo.train.train_config import TrainConfig, ValidationSource
from megatron_huatuo.train.validation import validate_on

_SAVES = 20
_SPIKE = 1.25
_WINDOW = 20


def settings(size: Size, run_dir: Path, blend: Path, base: Path | None, hf: Path | None) -> TrainConfig:
    """What all runs of a size have in common."""
    config = TrainConfig(run_dir=str(run_dir))
    config.model.preset, config.model.hf = (size.preset, None) if hf is None else (None, str(hf))
    config.model.init_from = None if base is None else str(base)
    config.data.blend = str(blend)
    config.optimizer.lr = size.peak_lr
    config.training.micro_batch_size = config.training.global_batch_size = size.global_batch_size
    config.training.precision = "fp32"
    config.training.seed = 1
    config.checkpoint.save_interval = None
    config.logging.tensorboard = False
    config.runtime.device = "cpu"
    return config


def train_base(work: Path, size_name: str) -> None:
    """A base model of the preset, trained on the general text alone."""
    size = SIZES[size_name]
    config = settings(size, work / "base", draw_base_blend(work, size), None, None)
    quietly(lambda: launch(config), work / "base.log")


def run_arm(work: Path, size_name: str, arm: Arm, seed: int, base: Path, hf: Path | None) -> None:
    """Train and measure one arm; results/ARM_SEED.json is kept where it is there. Weights are deleted once it is written."""
    folder = work / "runs" / f"{arm.name.replace(', ', '_').replace(' ', '_')}_{seed}"
    result = work / "results" / f"{folder.name}.json"
    if not result.is_file():
        quietly(
            lambda: write_json(result, _measure(work, SIZES[size_name], arm, seed, base, hf, folder)), folder / "log"
        )
    for weights in (*folder.glob(f"stage*/{CHECKPOINTS}"), folder / "averaged", folder / "hf"):
        shutil.rmtree(weights, ignore_errors=True)


def _measure(work: Path, size: Size, arm: Arm, seed: int, base: Path, hf: Path | None, folder: Path) -> dict[str, Any]:
    start, log, tokens = base, [], 0
    for number, stage in enumerate(arm.stages):
        run_dir = folder / f"stage{number}"
        _train(size, stage, run_dir, draw_blend(work, size, stage.blend, seed), start, hf)
        entries = list(read_log(run_dir))
        log += [{"lm_loss": entry["lm_loss"], "grad_norm": entry["grad_norm"]} for entry in entries]
        tokens += sum(sum(entry["trained_tokens_by_source"].values()) for entry in entries)
        start = _weights(stage, run_dir, folder)
    model = folder / "hf"
    if not model.is_dir():
        export_checkpoint(start, model, base_hf=hf, dtype="float32", skip_verification=True)
    exam = run_exam(
        model,
        [write_exam(work / "exam.jsonl", size)],
        folder / "exam",
        ExamSettings(scoring="loglikelihood", scored_text="text", normalise="character"),
        GenerationSettings(batch_size=16, device="cpu"),
    )
    losses = held_out_losses(work, size, start, hf, seed)
    general = losses.pop("general")
    return {
        "arm": arm.name,
        "seed": seed,
        "trained_tokens": tokens,
        "held_out_loss": losses,
        "general_loss": general,
        "exam_accuracy": exam["accuracy"],
        "exam_interval": exam["interval"],
        "exam_chance": exam["chance"],
        "worst_grad_norm": max(entry["grad_norm"] for entry in log),
        "loss_spikes": count_spikes([entry["lm_loss"] for entry in log]),
        "training_loss": [entry["lm_loss"] for entry in log],
    }


def _train(size: Size, stage: Stage, run_dir: Path, blend: Path, start: Path, hf: Path | None) -> None:
    config = settings(size, run_dir, blend, start, hf)
    config.schedule = stage.schedule
    if stage.averaged > 1:
        steps = -(-len(PackedRows(blend, verify=False)) // size.global_batch_size)
        config.checkpoint.save_interval, config.checkpoint.keep = max(1, steps // _SAVES), stage.averaged
    launch(config)


def _weights(stage: Stage, run_dir: Path, folder: Path) -> Path:
    """The stage's last checkpoint, or the average of its newest ones."""
    newest = complete_checkpoints(run_dir / CHECKPOINTS)[: stage.averaged]
    if len(newest) == 1:
        return newest[0]
    target = folder / "averaged"
    return resolve_checkpoint(target) if target.is_dir() else average_checkpoints(newest, target)


def held_out_losses(work: Path, size: Size, checkpoint: Path, hf: Path | None, seed: int) -> dict[str, float]:
    """Mean loss on the held-out part of every source and of the general text, by the training engine itself."""
    blend = draw_blend(work, size, "priority", seed)
    config = settings(size, work / "nowhere", blend, checkpoint, hf)
    config.data.validation = [
        ValidationSource(name, str(work / "index" / f"{name}_heldout")) for name in (*SOURCES, "general")
    ]
    device = enable_device("cpu")
    torch.set_num_threads(1)
    initialize_process_groups(config.parallel, device)
    try:
        training = build_training(config, config.model.architecture(), device, span=1)
        layout = BatchLayout(size.global_batch_size, size.global_batch_size, 0, 1)
        held_out = open_held_out(config, PackedRows(blend, verify=False))
        return {source.name: validate_on(training, source, layout, device, True) for source in held_out}
    finally:
        destroy_process_groups()


def measure_base(work: Path, size_name: str, base: Path, hf: Path | None) -> None:
    """Held-out losses of the model that all arms begin with, into results/base.json."""
    result, size = work / "results" / "base.json", SIZES[size_name]
    if not result.is_file():
        losses = quietly(lambda: held_out_losses(work, size, base, hf, 1), work / "base.log")
        write_json(result, {"general_loss": losses.pop("general"), "held_out_loss": losses})


def count_spikes(losses: list[float]) -> int:
    """Steps whose loss is a quarter above the mean of the twenty before."""
    return sum(
        losses[number] > _SPIKE * statistics.fmean(losses[number - _WINDOW : number])
        for number in range(_WINDOW, len(losses))
    )


def read_results(work: Path, names: list[str]) -> list[dict[str, Any]]:
    """Results of these arms, all seeds."""
    found = [read_json(path) for path in sorted((work / "results").glob("*.json")) if path.name != "base.json"]
    return [result for result in found if result["arm"] in names]
