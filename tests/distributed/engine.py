"""Short training runs for the distributed tests: what every rank does, and what it reports."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch

from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.parallel.host import enable_device
from megatron_huatuo.parallel.process_groups import initialize_process_groups
from megatron_huatuo.storage.run_files import resolve_checkpoint
from megatron_huatuo.train.inputs import open_inputs
from megatron_huatuo.train.launch import launch
from megatron_huatuo.train.loop import train
from megatron_huatuo.train.rules import validate
from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.runner import Ranks, run_ranks


def make_config(run_dir: Path | str, blend: Path | str, **sections: dict[str, Any]) -> TrainConfig:
    """A toy run in fp32 on the CPU, with `section={"key": value}` changes."""
    config = TrainConfig(run_dir=str(run_dir))
    defaults: dict[str, dict[str, Any]] = {
        "model": {"preset": "toy"},
        "data": {"blend": str(blend)},
        "optimizer": {"lr": 1e-3},
        "training": {"micro_batch_size": 1, "global_batch_size": 4, "precision": "fp32", "train_iters": 6},
        "checkpoint": {"save_interval": None},
        "logging": {"tensorboard": False},
        "runtime": {"device": "cpu", "distributed_timeout_minutes": 2.0},
    }
    for values in (defaults, sections):
        for section, settings in values.items():
            for key, value in settings.items():
                assert hasattr(getattr(config, section), key), f"{section}.{key}"
                setattr(getattr(config, section), key, value)
    return config


def train_rank(config: TrainConfig) -> str:
    """One rank of a run; process groups of torch exist already."""
    device = enable_device(config.runtime.device)
    rows = PackedRows(config.data.blend)
    validate(config, seq_length=rows.seq_length, num_rows=len(rows), world_size=torch.distributed.get_world_size())
    initialize_process_groups(config.parallel, device, config.runtime.distributed_timeout_minutes)
    return train(config, rows, open_inputs(config, rows), device)


def launch_rank(config: TrainConfig) -> int:
    """One rank of a run as tools/train.py starts it, process groups and exit code included."""
    return launch(config)


def wait_for_step(ranks: Ranks, run_dir: Path | str, iteration: int, timeout_s: float = 120) -> None:
    """Until the log has a line of `iteration`, or a later one."""
    path, end = Path(run_dir) / "log.jsonl", time.monotonic() + timeout_s
    while not (path.is_file() and f'"iteration": {iteration},' in path.read_text()):
        assert ranks.running(), f"the ranks ended before step {iteration}\n{ranks.output()[-4000:]}"
        assert time.monotonic() < end, f"no step {iteration} in {timeout_s} s\n{ranks.output()[-4000:]}"
        time.sleep(0.005)


def read_status(run_dir: Path | str) -> dict[str, Any]:
    """Content of status.json."""
    return json.loads((Path(run_dir) / "status.json").read_text())


def state_hashes(checkpoint: str) -> dict[str, str]:
    """sha256 of every value of a checkpoint: weights, their fp32 masters, both moments, settings of the optimizer."""
    from megatron.core import dist_checkpointing

    def flat(name: str, value: Any) -> dict[str, str]:
        if isinstance(value, dict):
            return {key: digest for part, held in value.items() for key, digest in flat(f"{name}.{part}", held).items()}
        if isinstance(value, torch.Tensor):  # as bytes: numpy has no bfloat16
            content = value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        else:
            content = repr(value).encode()
        return {name: hashlib.sha256(content).hexdigest()}

    return flat("", dist_checkpointing.load_plain_tensors(f"{checkpoint}/state"))


def outcome(run_dir: Path | str) -> tuple[list[tuple[float, ...]], dict[str, str]]:
    """What must be equal bit for bit: the curve of every step, and the state of the newest checkpoint."""
    keys = ("iteration", "lm_loss", "grad_norm", "learning_rate", "consumed_train_samples")
    log = [tuple(line[key] for key in keys) for line in read_log(run_dir)]
    [hashes] = run_ranks(1, state_hashes, str(resolve_checkpoint(run_dir)))
    return log, hashes


def read_log(run_dir: Path | str) -> list[dict[str, Any]]:
    """Lines of log.jsonl."""
    return [json.loads(line) for line in (Path(run_dir) / "log.jsonl").read_text().splitlines()]
