"""A run on fake tensors holds and sends what real gloo ranks hold and send, and what the plan says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import presets
from megatron_huatuo.models.hf_config import config_json
from megatron_huatuo.plan.memory import FRAGMENTATION, rank_memory, rank_parameters
from megatron_huatuo.plan.rank_volumes import rank_volumes
from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.runner import run_ranks, started_ranks
from tests.tool_process import run_tool
from tests.unit.convert.small_models import SMALL
from tests.unit.plan.plans import make_config

ROOT = Path(__file__).parents[2]
SEQ_LENGTH = 128


def small_config(folder: Path, architecture: Architecture, **settings: Any) -> TrainConfig:
    """A backbone of any size, by its config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(architecture, "bfloat16")))
    config = make_config(**{"global_batch_size": 16, **settings})
    config.model.preset, config.model.hf = None, str(folder)
    return config


def _real(config: TrainConfig) -> Any:
    """Figures of this gloo rank, all its micro-batches run."""
    import torch
    import torch.distributed as dist

    from megatron_huatuo.parallel.host import enable_device
    from megatron_huatuo.parallel.process_groups import initialize_process_groups
    from megatron_huatuo.train.rehearsal import figures_of_rank

    initialize_process_groups(config.parallel, enable_device("cpu"), 2.0)
    count = config.training.global_batch_size // config.parallel.data_parallel_size(dist.get_world_size())
    torch.manual_seed(0)
    return figures_of_rank(config, SEQ_LENGTH, count, count)


def _fake(config: TrainConfig, ranks: int, seq_length: int) -> Any:
    from megatron_huatuo.train.rehearsal import rehearse

    return rehearse(config, world_size=ranks, seq_length=seq_length)


def rehearsed(config: TrainConfig, ranks: int, seq_length: int) -> Any:
    """Figures of the first rank of each stage, from a process that has no groups."""
    with started_ranks(1, _fake, config, ranks, seq_length) as process:
        process.wait(240)
        succeeded, figures = process.result(0)
    assert succeeded, figures
    return figures


LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"overlap_grad_reduce": True, "overlap_param_gather": True},
    "tensor and stages": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "virtual stages": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "recomputed": {"tensor_model_parallel_size": 2, "recompute_granularity": "full", "precision": "fp32"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_ranks_hold_and_send_exactly_what_real_ones_do(layout: str, tmp_path: Path) -> None:
    """Parameters, bytes of each kind and traffic exactly; real ranks run all their 4 to 8 micro-batches. The fullest moment
    within 3 % at this size: real ranks also hold the tokens of further micro-batches and states of random numbers."""
    architecture = dataclasses.replace(SMALL["qwen2-tied"], num_layers=4)
    config = small_config(tmp_path / "model", architecture, **LAYOUTS[layout])
    real = run_ranks(4, _real, config)
    fake = rehearsed(config, 4, SEQ_LENGTH)
    stages = config.parallel.pipeline_model_parallel_size
    assert [figures.stage for figures in fake] == list(range(stages))
    for figures in fake:
        of_rank = real[figures.stage * (4 // stages)]
        assert figures.peak == pytest.approx(of_rank.peak, rel=0.03)
        assert dataclasses.replace(figures, peak=0) == dataclasses.replace(of_rank, peak=0)


@pytest.mark.parametrize(
    "name", ["baichuan2-7b", "baichuan2-13b", "llama-3.1-8b", "mistral-7b-v0.1", "qwen3-0.6b", "toy"]
)
def test_plans_hold_in_the_rehearsal(name: str, tmp_path: Path) -> None:
    """A preset with its real widths and one layer a stage, as TP 2, PP 2, DP 2. Parameters are exact, traffic but for some bytes
    of agreement; what is held all the time has the padding of its buckets. The fullest moment lies within the plan's share for
    fragmentation above the plan, and below it by a tenth and the logits at most."""
    architecture = dataclasses.replace(presets()[name], num_layers=2)
    layout = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "global_batch_size": 8}
    config = small_config(tmp_path / "model", architecture, **layout)
    for of_stage in rehearsed(config, 8, 4096):
        where = {"world_size": 8, "seq_length": 4096, "stage": of_stage.stage}
        memory, sent = rank_memory(config, architecture, **where), rank_volumes(config, architecture, **where)
        assert of_stage.parameters == rank_parameters(architecture, 2, 2, of_stage.stage)
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(of_stage, part) == pytest.approx(getattr(memory, part), rel=1e-3), part
        for purpose, planned in sent.items():
            assert of_stage.sent.get(purpose, 0.0) == pytest.approx(planned, rel=1e-3, abs=1000), purpose
        held = memory.total - memory.reserve
        assert of_stage.peak <= (1 + FRAGMENTATION) * held and held <= 1.1 * of_stage.peak + memory.logits


@pytest.mark.parametrize("ranks", ["0", "2"])
def test_ranks_without_a_dry_run_are_refused(ranks: str, sample_blend: Path, tmp_path: Path) -> None:
    flags = ["--data.blend", sample_blend, "--run_dir", tmp_path / "run", "--ranks", ranks]
    done = run_tool("train", "--config", "examples/toy_cpu/train.yaml", *flags)
    assert done.returncode == 1 and f"error: wrong --ranks: got {ranks}, need 1 or more, and --dry-run" in done.stderr


def test_the_tool_rehearses_a_run_for_its_ranks(sample_blend: Path, tmp_path: Path) -> None:
    flags = ["--data.blend", sample_blend, "--run_dir", tmp_path / "run", "--dry-run", "--ranks", "8"]
    layout = ["--parallel.tensor_model_parallel_size", "2", "--parallel.pipeline_model_parallel_size", "2"]
    done = run_tool("train", "--config", "examples/toy_cpu/train.yaml", *flags, *layout)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "on 8 ranks: would start" in done.stdout and "# dry run of 8 ranks" in done.stdout
    assert done.stdout.count(" parameters [") == 2 and "tensor parallel" in done.stdout
    assert not (tmp_path / "run").exists()
