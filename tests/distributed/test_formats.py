"""The two forms of a checkpoint: which save takes which, and what the routine one, that of all published sizes, can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.checkpoint.layout import complete_checkpoints, iteration_of
from megatron_huatuo.checkpoint.store import PORTABLE, ROUTINE
from megatron_huatuo.train.config import TrainConfig
from tests.distributed.engine import train_rank
from tests.distributed.runner import run_ranks

LAST = 6


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
