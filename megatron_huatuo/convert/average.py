"""The weighted average of the weights of several checkpoints of one model, as a checkpoint of its own.

A constant learning rate with averaged checkpoints keeps what a decay to zero forgets of a curriculum whose best data comes
last (arXiv 2511.18903). Invariant: sums are made in float32, in the order of the checkpoints, and stored so; one tensor
of each is in memory, whatever the number of layers.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_huatuo.checkpoint.integrity import verify_checkpoint
from megatron_huatuo.checkpoint.layout import write_latest
from megatron_huatuo.checkpoint.streaming import ahead, one_torch_thread
from megatron_huatuo.convert.state_tensors import StateReader, StateWriter
from megatron_huatuo.convert.verify import load_checkpoint_architecture
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.log import progress
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.weight_rules import WeightRule
from megatron_huatuo.models.weight_table import each_weight
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.manifest import describe_files, read_manifest, write_json, write_manifest
from megatron_huatuo.storage.run_files import (
    ARCHITECTURE,
    CHECKPOINT_KIND,
    CONFIG,
    STATE,
    TOKENIZER,
    TRAINING,
    iteration_name,
    iteration_of,
    read_training_state,
    resolve_checkpoint,
)


@one_torch_thread()
def average_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    weights: Sequence[float] | None = None,
) -> Path:
    """Write `target`/iter_N with sum(w_i · W_i) / sum(w_i), N the highest iteration among them; returns it.

    checkpoints: runs, their checkpoints/ or single iterations; at least two different ones. weights: one for each, not
    negative; equal ones by default. The result has no optimizer state: it is for `model.init_from` and export.
    Raises: ConfigError for wrong weights; DataError when the models differ in architecture or tokenizer; IntegrityError
    when a file is damaged. Then, or when interrupted, `target` is absent.
    """
    directories = [resolve_checkpoint(path) for path in checkpoints]
    shares = _shares(directories, weights)
    architecture = _common_architecture(directories)
    for directory in directories:
        verify_checkpoint(directory)
    readers = [StateReader(directory / STATE, architecture) for directory in directories]
    newest = max(directories, key=iteration_of)
    with atomic_directory(target) as root:
        written = root / iteration_name(iteration_of(newest))
        writer = StateWriter(written / STATE, architecture.num_layers)
        total = sum(1 for _ in each_weight(architecture))
        for rule, layer, tensor in progress(
            ahead(_averages(architecture, readers, shares)), total=total, description="averaging", unit="tensor"
        ):
            writer.write(rule, layer, tensor)
        writer.finish()
        _write_companions(written, newest, directories, shares)
        described = {f"{STATE}/{name}": entry for name, entry in writer.files.items()}
        others = [path for path in written.rglob("*") if path.is_file() and path.parent.name != STATE]
        described |= describe_files(written, [str(path.relative_to(written)) for path in others])
        write_manifest(written, CHECKPOINT_KIND, {"iteration": iteration_of(newest)}, described)
        write_latest(root, iteration_of(newest))
    return Path(target) / written.name


def _shares(directories: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    """Weights that sum to 1."""
    if len(directories) < 2:
        raise ConfigError(f"nothing to average: got {len(directories)} checkpoint, need 2 or more (--checkpoints).")
    if len(set(map(Path.resolve, directories))) < len(directories):
        raise ConfigError(f"checkpoint is named twice: got {', '.join(map(str, directories))}. Use --weights instead.")
    given = [1.0] * len(directories) if weights is None else list(weights)
    if len(given) != len(directories):
        raise ConfigError(f"wrong --weights: got {len(given)}, need {len(directories)}, one for each checkpoint.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given) > 0:
        raise ConfigError(f"wrong --weights: got {given}, need numbers of 0 or more that do not sum to 0.")
    return [weight / sum(given) for weight in given]


def _common_architecture(directories: Sequence[Path]) -> Architecture:
    """The architecture of all. Raises: DataError naming the first difference in it, or in the tokenizer."""
    first, *others = directories
    architecture = load_checkpoint_architecture(first)
    for other in others:
        differences = load_checkpoint_architecture(other).differences(architecture)
        if differences:
            name, theirs, ours = differences[0]
            raise DataError(
                f"checkpoints are of different models: {name} is {theirs} in {other} and {ours} in {first}. Average "
                "checkpoints of one run, or a run and its base."
            )
        if _tokenizer_files(first) != _tokenizer_files(other):
            raise DataError(
                f"checkpoints have different tokenizers: {first} and {other}. Average checkpoints of one run, or a run and "
                "its base."
            )
    return architecture


def _tokenizer_files(directory: Path) -> dict[str, str]:
    """sha256 of the files that decide ids, by name."""
    files = read_manifest(directory, CHECKPOINT_KIND)["files"]
    decisive = ("tokenizer.model", "tokenizer.json")
    return {name: files[path]["sha256"] for name in decisive if (path := f"{TOKENIZER}/{name}") in files}


def _averages(
    architecture: Architecture, readers: Sequence[StateReader], shares: Sequence[float]
) -> Iterator[tuple[WeightRule, int, torch.Tensor]]:
    for rule, layer in each_weight(architecture):
        mean = torch.zeros(rule.shape, dtype=torch.float32)
        for reader, share in zip(readers, shares, strict=True):
            mean.add_(reader.read(rule, layer).float(), alpha=share)
        yield rule, layer, mean


def _write_companions(written: Path, newest: Path, directories: Sequence[Path], shares: Sequence[float]) -> None:
    """What the newest checkpoint carries, and what was averaged."""
    for name in (ARCHITECTURE, CONFIG):
        if (newest / name).is_file():
            shutil.copyfile(newest / name, written / name)
    if (newest / TOKENIZER).is_dir():
        shutil.copytree(newest / TOKENIZER, written / TOKENIZER)
    averaged: list[dict[str, Any]] = [
        {
            "checkpoint": str(directory),
            "iteration": iteration_of(directory),
            "manifest_sha256": read_manifest(directory, CHECKPOINT_KIND)["manifest_sha256"],
            "weight": share,
        }
        for directory, share in zip(directories, shares, strict=True)
    ]
    write_json(written / TRAINING, read_training_state(newest) | {"optimizer_format": None, "averaged": averaged})
