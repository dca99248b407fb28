"""A saved optimizer: any layout goes on with it, megatron-core's own loader does, and what it has written is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.engine import outcome, read_log, train_rank
from tests.distributed.runner import run_ranks

STOPPED, LAST = 3, 6
SMALL_BUCKETS = 50_000  # several in the toy model

# name: (ranks, parallel section)
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DP1": (1, {}),
    "DP2": (2, {}),
    "DP2 overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
    "DP4": (4, {}),
    "TP2": (2, {"tensor_model_parallel_size": 2}),
    "PP2 interleaved": (2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
}


def _without_gathering(config: TrainConfig) -> str:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    del DistributedOptimizer.get_parameter_state_dp_zero
    return train_rank(config)


def _as_megatron_core_does_it(config: TrainConfig) -> str:
    from megatron_huatuo.checkpoint import store

    store.use_ranges = lambda: None
    return train_rank(config)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [
        (_without_gathering, _without_gathering),
        (_without_gathering, _as_megatron_core_does_it),
        (_as_megatron_core_does_it, _without_gathering),
    ],
)
def test_resume_is_bitwise_whoever_saved(
    saved_by: Callable[..., str], loaded_by: Callable[..., str], tmp_path: Path, configure, undisturbed
) -> None:
    """No rank ever holds another's state, and the files are those of megatron-core's format."""
    run_ranks(2, saved_by, configure(tmp_path, training={"train_iters": STOPPED}))
    assert run_ranks(2, loaded_by, configure(tmp_path)) == ["finished", "finished"]
    assert outcome(tmp_path) == undisturbed


def _in_buckets(size: int, config: TrainConfig) -> str:
    from megatron_huatuo.train import setup

    setup.BUCKET_SIZE = size
    return train_rank(config)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, configure, small_model: Path) -> dict[str, Any]:
    """The model section of every run: pipeline stages would draw other first weights."""
    model = {"hf": str(small_model)}
    config = configure(tmp_path_factory.mktemp("first"), model=model, training={"train_iters": 1})
    run_ranks(1, train_rank, config)
    return {**model, "init_from": config.run_dir}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, configure, first: dict[str, Any]) -> list[dict[str, Any]]:
    """The log of one rank that nobody stopped."""
    config = configure(tmp_path_factory.mktemp("reference"), model=first, training={"train_iters": LAST})
    run_ranks(1, train_rank, config)
    return read_log(config.run_dir)


@pytest.mark.parametrize(
    ("saved_at", "loaded_at"),
    [
        ("TP2", "DP2 overlapped"),
        ("PP2 interleaved", "TP2"),
        ("DP1", "PP2 interleaved"),
        ("DP4", "DP1"),
        ("DP2 overlapped", "DP4"),
    ],
)
def test_a_run_goes_on_in_another_layout_and_with_other_buckets(
    saved_at: str, loaded_at: str, tmp_path: Path, configure, first: dict[str, Any], reference: list[dict[str, Any]]
) -> None:
    ranks, parallel = LAYOUTS[saved_at]
    config = configure(tmp_path, model=first, parallel=parallel, training={"train_iters": STOPPED})
    run_ranks(ranks, _in_buckets, SMALL_BUCKETS, config)
    ranks, parallel = LAYOUTS[loaded_at]
    run_ranks(ranks, train_rank, configure(tmp_path, model=first, parallel=parallel, training={"train_iters": LAST}))
    log = read_log(tmp_path)
    assert [line["iteration"] for line in log] == list(range(1, LAST + 1))
    for got, want in zip(log, reference, strict=True):
        assert got["lm_loss"] == pytest.approx(want["lm_loss"], abs=1e-5), want["iteration"]
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4), want["iteration"]


def _in_the_old_format(config: TrainConfig) -> str:
    """As release 0.1 saved large models on the way."""
    from functools import partial

    from megatron_huatuo.checkpoint import save, store

    save.FORMAT = store._OLD_FORMAT
    save.optimizer_state = partial(store.optimizer_state, optimizer_format=store._OLD_FORMAT)
    return train_rank(config)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, configure) -> Path:
    """A run whose checkpoint is in the old format."""
    run_dir = tmp_path_factory.mktemp("old")
    run_ranks(2, _in_the_old_format, configure(run_dir, training={"train_iters": STOPPED}))
    return run_dir


def test_the_old_format_is_loaded_with_the_buckets_it_was_saved_with(
    old: Path, tmp_path: Path, configure, undisturbed
) -> None:
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)
    with pytest.raises(
        AssertionError, match=r"IntegrityError: checkpoint does not fit the (run|model): .*iter_0000003"
    ):
        run_ranks(2, _in_buckets, SMALL_BUCKETS, configure(tmp_path))
    run_ranks(2, train_rank, configure(tmp_path))
    assert outcome(tmp_path) == undisturbed


def test_the_old_format_in_another_layout_is_refused_with_the_way_out(old: Path, configure) -> None:
    config = configure(old, parallel={"tensor_model_parallel_size": 2})
    with pytest.raises(AssertionError, match=r"cannot change its layout: .*put a file STOP into the run dir"):
        run_ranks(2, train_rank, config)
