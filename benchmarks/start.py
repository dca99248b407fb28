"""How long a run over the recipe's millions of documents takes to its first step, beyond the imports.

Measured are real runs of tools/train.py, started as torchrun does: from the moment at which the first of the ranks has
imported all that training needs, to the moment at which log.jsonl holds the first step. In between lie reading the
settings, opening (and hashing) blend and indexes, process groups, model and optimizer, and the step itself. Files come
from the page cache, where the machine has room for them: what a cold disk adds is that disk's figure.
"""

from __future__ import annotations

import importlib
import json
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import surroundings
from benchmarks.ranks import on_ranks
from benchmarks.recipe import build_recipe_blend
from benchmarks.settings import StartBenchmark

TOOL = Path(__file__).parents[1] / "tools" / "train.py"
_SEQ_LENGTH = 4096
_MEAN_LENGTH = 280.0
_TARGET_S = 10.0


def run(settings: StartBenchmark) -> list[dict[str, Any]]:
    """Seconds from the imports to the first step of a toy model, every byte of the data hashed and not."""
    runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(dir=settings.directory) as name:
        folder = Path(name)
        blend = build_recipe_blend(
            folder, documents=settings.documents, seq_length=_SEQ_LENGTH, mean_length=_MEAN_LENGTH
        )
        for number in range(settings.repeats):
            for verify, done in runs.items():
                done.append(
                    _start(_settings(folder / f"run{number}_{verify}", blend, settings.ranks, verify), settings.ranks)
                )
    return [_record(verify, done, settings.documents, settings.ranks) for verify, done in runs.items()]


def _settings(run_dir: Path, blend: Path, ranks: int, verify: bool) -> dict[str, str]:
    """Settings of one step of the toy model."""
    return {
        "run_dir": str(run_dir),
        "data.blend": str(blend),
        "data.verify_hashes": str(verify).lower(),
        "model.preset": "toy",
        "training.precision": "fp32",
        "training.micro_batch_size": "1",
        "training.global_batch_size": str(ranks),
        "training.train_iters": "1",
        "logging.tensorboard": "false",
        "runtime.device": "cpu",
    }


def _start(settings: dict[str, str], ranks: int) -> dict[str, float]:
    """One run. launch_s: until the first rank has imported everything, launcher included; start_s: from there on to the
    end of the first step; step_s: that step."""
    began = time.time()
    imported = min(on_ranks(ranks, _train, [f"--{key}={value}" for key, value in settings.items()]))
    log = Path(settings["run_dir"], "log.jsonl")
    (step,) = log.read_text(encoding="utf-8").splitlines()
    return {
        "launch_s": imported - began,
        "start_s": log.stat().st_mtime - imported,  # of a run of one step: when its line was written
        "step_s": json.loads(step)["step_time_s"],
    }


def _train(arguments: list[str]) -> float:
    """tools/train.py on one rank; returns the time at which everything was imported."""
    importlib.import_module("megatron_huatuo.train.launch")
    imported = time.time()
    sys.argv = [str(TOOL), *arguments]
    code = runpy.run_path(str(TOOL))["main"]()
    if code != 0:
        sys.exit(code)
    return imported


def _record(verify: bool, runs: list[dict[str, float]], documents: int, ranks: int) -> dict[str, Any]:
    kind = "every byte hashed" if verify else "data.verify_hashes=false"
    seconds = statistics.median(run["start_s"] for run in runs)
    return {
        "name": f"start: first step, {documents:,} documents, {ranks} ranks, {kind}",
        "ours": seconds,
        "peer": _TARGET_S,
        "peer_name": "limit for 5,713,052 documents",
        "ratio": seconds / _TARGET_S,
        "unit": "s beyond imports",
        "runs": {"ours": runs},
        **surroundings(("numpy", "torch", "megatron-core")),
    }
