"""Short training runs for the distributed tests: what every rank does, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megatron_huatuo.dataset.packed_rows import PackedRows
from megatron_huatuo.host import enable_device
from megatron_huatuo.model.process_groups import initialize_process_groups
from megatron_huatuo.train.config import TrainConfig, validate
from megatron_huatuo.train.loop import train


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
    train_iters = validate(
        config, seq_length=rows.seq_length, num_rows=len(rows), world_size=torch.distributed.get_world_size()
    )
    initialize_process_groups(config.parallel, device, config.runtime.distributed_timeout_minutes)
    return train(config, rows, device, train_iters)


def read_log(run_dir: Path | str) -> list[dict[str, Any]]:
    """Lines of log.jsonl."""
    return [json.loads(line) for line in (Path(run_dir) / "log.jsonl").read_text().splitlines()]
