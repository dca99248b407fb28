"""The two forms of a checkpoint: which save takes which, and what the routine one, that of all published sizes, can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.checkpoint.store import PORTABLE, ROUTINE
from megatron_huatuo.storage.run_files import complete_checkpoints, iteration_of
from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.engine import outcome, read_log, train_rank
from tests.distributed.runner import run_ranks

LAST = 6
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


def formats(run_dir: Path) -> dict[int, str]:
    """{iteration: format} of a run's checkpoints."""
    found = complete_checkpoints(run_dir / "checkpoints")
    return {iteration_of(path): json.loads((path / "training.json").read_text())["optimizer_format"] for path in found}


def routine(configure, run_dir: Path, **sections: dict[str, Any]) -> TrainConfig:
    sections["checkpoint"] = {"portable": False, **sections.get("checkpoint", {})}
    sections["training"] = {"train_iters": LAST, **sections.get("training", {})}
    return configure(run_dir, **sections)


def _stop_after(config: TrainConfig, step: int, *requests: str) -> str:
    """A run in which files are placed in its directory while a step runs."""
    from megatron_huatuo.train import loop

    train_step, done = loop.train_step, 0

    def placing(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        result = train_step(*arguments, **options)
        done += 1
        if done == step - 1:
            for name in requests:
                (Path(config.run_dir) / name).touch()
        return result

    loop.train_step = placing
    return train_rank(config)


def test_the_save_after_the_last_step_is_portable_and_takes_a_request_along(tmp_path: Path, configure) -> None:
    config = routine(configure, tmp_path)
    assert run_ranks(1, _stop_after, config, LAST, "SAVE_PORTABLE") == ["finished"]
    assert formats(tmp_path) == {3: ROUTINE, 6: PORTABLE}
    assert not (tmp_path / "SAVE_PORTABLE").exists(), "it would make the next save portable"


@pytest.mark.parametrize("step", [2, 3], ids=["between saves", "at a save"])
def test_a_run_that_is_stopped_before_its_end_saves_in_the_routine_form(step: int, tmp_path: Path, configure) -> None:
    config = routine(configure, tmp_path)
    assert run_ranks(1, _stop_after, config, step, "STOP") == ["stopped"]
    assert formats(tmp_path) == {step: ROUTINE}


@pytest.mark.parametrize(("step", "saved"), [(2, {2: PORTABLE}), (4, {3: ROUTINE, 4: PORTABLE})])
def test_a_stop_with_a_request_saves_in_the_portable_form(
    step: int, saved: dict[int, str], tmp_path: Path, configure
) -> None:
    """Also when a save was due between request and stop."""
    config = routine(configure, tmp_path)
    assert run_ranks(1, _stop_after, config, step, "STOP", "SAVE_PORTABLE") == ["stopped"]
    assert formats(tmp_path) == saved


def test_a_routine_checkpoint_of_the_last_step_is_replaced_by_a_portable_one(tmp_path: Path, configure) -> None:
    """A run that was stopped at step 3, and then is said to have had no more steps."""
    assert run_ranks(1, _stop_after, routine(configure, tmp_path), 3, "STOP") == ["stopped"]
    assert run_ranks(1, train_rank, routine(configure, tmp_path, training={"train_iters": 3})) == ["finished"]
    assert formats(tmp_path) == {3: PORTABLE}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["iter_0000003", "latest"]


def test_resume_in_the_routine_form_is_bitwise(tmp_path: Path, configure, finish, undisturbed) -> None:
    config = configure(tmp_path, checkpoint={"portable": False})
    assert run_ranks(2, _stop_after, config, 3, "STOP") == ["stopped", "stopped"]
    assert formats(tmp_path) == {3: ROUTINE}
    finish(config)
    assert outcome(tmp_path) == undisturbed


def _in_buckets(size: int, function: Callable[..., str], *arguments: Any) -> str:
    from megatron_huatuo.train import setup

    setup.BUCKET_SIZE = size
    return function(*arguments)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, configure) -> dict[str, Any]:
    """The model section of every run: pipeline stages would draw other first weights."""
    config = configure(tmp_path_factory.mktemp("first"), training={"train_iters": 1})
    run_ranks(1, train_rank, config)
    return {"init_from": config.run_dir}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, configure, first: dict[str, Any]) -> list[dict[str, Any]]:
    """The log of one rank that nobody stopped."""
    config = routine(configure, tmp_path_factory.mktemp("reference"), model=first)
    run_ranks(1, train_rank, config)
    return read_log(config.run_dir)


@pytest.mark.parametrize(
    ("saved_at", "loaded_at"),
    [
        ("TP2", "TP2"),
        ("PP2 interleaved", "PP2 interleaved"),
        ("DP2 overlapped", "DP1"),
        ("DP1", "DP2"),
        ("DP4", "DP2 overlapped"),
    ],
)
def test_a_routine_checkpoint_is_resumed_with_other_data_parallel_ranks_and_other_overlap(
    saved_at: str, loaded_at: str, tmp_path: Path, configure, first: dict[str, Any], reference: list[dict[str, Any]]
) -> None:
    ranks, parallel = LAYOUTS[saved_at]
    config = routine(configure, tmp_path, model=first, parallel=parallel)
    run_ranks(ranks, _in_buckets, SMALL_BUCKETS, _stop_after, config, 3, "STOP")
    assert formats(tmp_path) == {3: ROUTINE}
    ranks, parallel = LAYOUTS[loaded_at]
    run_ranks(
        ranks, _in_buckets, SMALL_BUCKETS, train_rank, routine(configure, tmp_path, model=first, parallel=parallel)
    )
    log = read_log(tmp_path)
    assert [line["iteration"] for line in log] == list(range(1, LAST + 1))
    for got, want in zip(log, reference, strict=True):
        assert got["lm_loss"] == pytest.approx(want["lm_loss"], abs=1e-5), want["iteration"]
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4), want["iteration"]


def test_a_routine_checkpoint_of_other_buckets_is_refused_in_words(tmp_path: Path, configure) -> None:
    config = routine(configure, tmp_path)
    run_ranks(1, _in_buckets, SMALL_BUCKETS, _stop_after, config, 3, "STOP")
    with pytest.raises(
        AssertionError, match=r"IntegrityError: checkpoint does not fit the (run|model): .*iter_0000003"
    ):
        run_ranks(1, train_rank, config)


def test_a_routine_checkpoint_in_another_layout_is_refused_with_the_way_out(tmp_path: Path, configure) -> None:
    config = routine(configure, tmp_path)
    run_ranks(2, _stop_after, config, 2, "STOP")
    config.parallel.tensor_model_parallel_size = 2
    with pytest.raises(AssertionError, match=r"cannot change its layout: .*put a file SAVE_PORTABLE into the run dir"):
        run_ranks(2, train_rank, config)
