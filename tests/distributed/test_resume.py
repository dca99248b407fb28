"""A run that was stopped and started again is the run that was never stopped, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.engine import make_config, read_log, train_rank
from tests.distributed.runner import run_ranks

STEPS = 7  # 4 rows a step


def config(run_dir: Path, blend: Path, model: Path, **training: Any):
    sections = {"preset": None, "hf": str(model)}
    return make_config(run_dir, blend, model=sections, training={"train_iters": STEPS, **training})


def state_hashes(checkpoint: str) -> dict[str, str]:
    """sha256 of every value of a checkpoint: weights, their fp32 masters, both moments, settings of the optimizer."""
    from megatron.core import dist_checkpointing

    def flat(name: str, value: Any) -> dict[str, str]:
        if isinstance(value, dict):
            return {key: digest for part, held in value.items() for key, digest in flat(f"{name}.{part}", held).items()}
        content = value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
        return {name: hashlib.sha256(content).hexdigest()}

    return flat("", dist_checkpointing.load_plain_tensors(f"{checkpoint}/state"))


def outcome(run_dir: Path) -> tuple[list[tuple[float, ...]], dict[str, str]]:
    """What must be equal: loss, gradient norm and learning rate of every step, and the final state."""
    log = [
        (line["iteration"], line["lm_loss"], line["grad_norm"], line["learning_rate"], line["consumed_train_samples"])
        for line in read_log(run_dir)
    ]
    [hashes] = run_ranks(1, state_hashes, str(run_dir / "checkpoints" / f"iter_{STEPS:07d}"))
    return log, hashes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sample_blend: Path, small_model: Path):
    """Outcome of the run that nobody stopped, on two ranks."""
    directory = tmp_path_factory.mktemp("undisturbed")
    run_ranks(2, train_rank, config(directory, sample_blend, small_model))
    log, hashes = outcome(directory)
    assert len(log) == STEPS and any("exp_avg" in name for name in hashes)
    return log, hashes


@pytest.mark.parametrize("stopped_after", [1, 4, STEPS - 1])
def test_resume_is_bitwise(
    stopped_after: int, tmp_path: Path, sample_blend: Path, small_model: Path, undisturbed
) -> None:
    for last in (stopped_after, STEPS):
        run_ranks(2, train_rank, config(tmp_path, sample_blend, small_model, train_iters=last))
    assert outcome(tmp_path) == undisturbed


def test_a_finished_run_finds_itself_done(tmp_path: Path, sample_blend: Path, small_model: Path) -> None:
    for _ in range(2):
        assert run_ranks(1, train_rank, config(tmp_path, sample_blend, small_model, train_iters=1)) == ["finished"]
    assert len(read_log(tmp_path)) == 1
