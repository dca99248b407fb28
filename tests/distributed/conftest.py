"""What the tests of the engine share: the run that nobody disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.engine import launch_rank, make_config, outcome
from tests.distributed.runner import started_ranks

STEPS, SAVE_INTERVAL = 9, 3


@pytest.fixture(scope="session")
def configure(sample_blend: Path, smallest_model: Path) -> Callable[..., TrainConfig]:
    """configure(run_dir, **sections): a run of 9 steps of 4 rows on the sample that saves every 3."""

    def configure(run_dir: Path | str, **sections: dict[str, Any]) -> TrainConfig:
        defaults: dict[str, dict[str, Any]] = {
            "model": {"preset": None, "hf": str(smallest_model)},
            "training": {"train_iters": STEPS},
            "checkpoint": {"save_interval": SAVE_INTERVAL, "keep": 3},
        }
        merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults.keys() | sections.keys()}
        return make_config(run_dir, sample_blend, **merged)

    return configure


@pytest.fixture(scope="session")
def finish() -> Callable[[TrainConfig], str]:
    """finish(config): run it on two ranks to its end, which must be good; what they printed."""

    def finish(config: TrainConfig) -> str:
        with started_ranks(2, launch_rank, config) as ranks:
            codes = ranks.wait(120)
            assert codes == [0, 0], ranks.output()[-4000:]
            return ranks.output()

    return finish


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, configure, finish):
    """Outcome of the run on two ranks that nobody disturbed: (curve, state of its last checkpoint)."""
    directory = tmp_path_factory.mktemp("undisturbed")
    finish(configure(directory))
    result = outcome(directory)
    assert len(result[0]) == STEPS and any("exp_avg" in name for name in result[1])
    return result
