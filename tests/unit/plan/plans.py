"""Configurations and plans for the tests of this folder."""

from __future__ import annotations

from typing import Any

from megatron_huatuo.plan.gpus import get_gpu
from megatron_huatuo.plan.plan import Cluster, Plan, PlannedData, plan_run
from megatron_huatuo.train.train_config import TrainConfig

GIB = 2**30


def make_config(preset: str = "baichuan2-7b", **settings: Any) -> TrainConfig:
    """A configuration with some settings of parallel and training changed."""
    config = TrainConfig()
    config.model.preset = preset
    for key, value in settings.items():
        section = config.parallel if hasattr(config.parallel, key) else config.training
        assert hasattr(section, key)
        setattr(section, key, value)
    return config


def plan_7b(gpu: str = "a100-80gb", gpus: int = 8, rows: int | None = None, **settings: Any) -> Plan:
    """Rows of 4,096 tokens on NVIDIA's own nodes."""
    return plan_run(make_config(**settings), Cluster(get_gpu(gpu), gpus), PlannedData(rows, 4096))
