"""However a run is laid out over ranks and micro-batches, it is the same run: same rows, same losses, same updates."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engine import make_config, read_log, train_rank
from tests.distributed.runner import run_ranks

STEPS = 20
TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}

# name: (ranks, parallel section, training section)
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "micro-batch 2": (1, {}, {"micro_batch_size": 2}),
    "micro-batch 4": (1, {}, {"micro_batch_size": 4}),
    "recompute full": (1, {}, {"micro_batch_size": 2, "recompute_granularity": "full"}),
    "recompute attention and mlp": (
        *(1, {}),
        {"micro_batch_size": 2, "recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]},
    ),
    "DP2": (2, {}, {}),
    "DP2 overlapped": (2, OVERLAP, {"micro_batch_size": 2}),
    "TP2": (2, TP2, {"micro_batch_size": 2}),
    "TP2 without sequence parallelism": (2, TP2 | {"sequence_parallel": False}, {"micro_batch_size": 2}),
    "TP2 recompute selective": (2, TP2, {"micro_batch_size": 2, "recompute_granularity": "selective"}),
    "PP2": (2, PP2, {}),
    "PP2 interleaved": (2, PP2 | {"virtual_pipeline_model_parallel_size": 2}, {"micro_batch_size": 2}),
    "PP2 interleaved, overlapped": (
        *(2, PP2 | OVERLAP | {"virtual_pipeline_model_parallel_size": 2}),
        {"recompute_granularity": "full", "recompute_num_layers": 1},
    ),
    "TP2 PP2": (4, TP2 | PP2, {"micro_batch_size": 2}),
    "TP2 DP2 overlapped": (4, TP2 | OVERLAP, {"micro_batch_size": 2}),
    "PP2 DP2": (4, PP2, {}),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, sample_blend: Path, small_model: Path) -> dict[str, Any]:
    """The model section of every run: one architecture, one checkpoint with first weights."""
    first = tmp_path_factory.mktemp("first")
    model = {"preset": None, "hf": str(small_model)}
    run_ranks(1, train_rank, make_config(first, sample_blend, model=model, training={"train_iters": 1}))
    return {**model, "init_from": str(first)}


def run(directory: Path, blend: Path, start: dict[str, Any], layout: str, train_iters: int) -> list[dict[str, Any]]:
    """Train on a layout up to `train_iters`; returns the log."""
    ranks, parallel, training = LAYOUTS.get(layout, (1, {}, {}))
    config = make_config(
        directory, blend, model=start, parallel=parallel, training={**training, "train_iters": train_iters}
    )
    run_ranks(ranks, train_rank, config)
    return read_log(directory)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, sample_blend: Path, start: dict[str, Any]) -> list[dict]:
    """The log of one rank, one row at a time."""
    return run(tmp_path_factory.mktemp("reference"), sample_blend, start, "TP1", STEPS)


@pytest.fixture(scope="module")
def saved_at_tp2(tmp_path_factory: pytest.TempPathFactory, sample_blend: Path, start: dict[str, Any]) -> Path:
    """A run of five steps at TP2; tests go on from copies of it."""
    directory = tmp_path_factory.mktemp("tp2")
    run(directory, sample_blend, start, "TP2", 5)
    return directory


def assert_same(log: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert [line["iteration"] for line in log] == [line["iteration"] for line in reference]
    for got, want in zip(log, reference, strict=True):
        at = f"at iteration {want['iteration']}"
        assert got["consumed_train_samples"] == want["consumed_train_samples"], at
        assert got["trained_tokens_by_source"] == want["trained_tokens_by_source"], at
        assert got["lm_loss"] == pytest.approx(want["lm_loss"], abs=1e-5), at
        assert got["loss_by_source"] == pytest.approx(want["loss_by_source"], abs=5e-5), at
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4), at


def test_the_reference_learns(reference: list[dict]) -> None:
    losses = [line["lm_loss"] for line in reference]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_curve_equals_that_of_one_rank(
    layout: str, tmp_path: Path, sample_blend: Path, start: dict[str, Any], reference: list[dict]
) -> None:
    assert_same(run(tmp_path / "run", sample_blend, start, layout, STEPS), reference)


@pytest.mark.parametrize("loaded_at", ["PP2", "TP2 PP2", "PP2 interleaved", "DP2", "TP1"])
def test_a_run_saved_at_tp2_goes_on_at_another_layout(
    loaded_at: str,
    tmp_path: Path,
    sample_blend: Path,
    start: dict[str, Any],
    saved_at_tp2: Path,
    reference: list[dict],
) -> None:
    directory = shutil.copytree(saved_at_tp2, tmp_path / "run")
    log = run(directory, sample_blend, start, loaded_at, 9)
    assert_same(log, reference[:9])
