"""Checkpoints go from one release of megatron-core to another and back. Needs two of them: make test-mcore."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import megatron.core
import pytest

from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.engine import launch_rank, outcome, train_rank
from tests.distributed.runner import run_ranks, started_ranks

ROOT = Path(__file__).parents[2]
FIRST, LAST = 3, 6

# A run on two ranks in a process that sees another megatron-core.
TRAIN = """
import pickle, sys
import megatron.core
from tests.distributed.engine import train_rank
from tests.distributed.runner import run_ranks

if __name__ == "__main__":
    assert run_ranks(2, train_rank, pickle.load(sys.stdin.buffer)) == ["finished", "finished"]
    print(megatron.core.__version__)
"""


def _other_release() -> Path | None:
    """Folder of a megatron-core on the path that is not the one in use."""
    for found in importlib.metadata.distributions(name="megatron-core"):
        if found.version != megatron.core.__version__:
            return Path(str(found.locate_file("")))
    return None


OTHER = _other_release()
pytestmark = pytest.mark.skipif(OTHER is None, reason="needs two releases of megatron-core: make test-mcore")


def test_parameters_have_the_places_that_the_release_asks_for(tmp_path: Path, configure) -> None:
    """0.19 says when it had to find them by itself."""
    with started_ranks(1, launch_rank, configure(tmp_path, training={"train_iters": 1})) as ranks:
        assert ranks.wait(120) == [0]
        assert "full_param_layout not provided" not in ranks.output()


def _train(config: TrainConfig) -> None:
    assert run_ranks(2, train_rank, config) == ["finished", "finished"]


def _train_with_the_other(config: TrainConfig) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{OTHER}"}
    command = [sys.executable, "-W", "ignore", "-c", TRAIN]
    done = subprocess.run(command, cwd=ROOT, env=environment, input=pickle.dumps(config), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    assert done.stdout.decode().split() != [megatron.core.__version__]


@pytest.mark.parametrize("others", ["first half", "second half"])
def test_a_run_goes_on_with_another_release_bit_by_bit(others: str, tmp_path: Path, configure) -> None:
    """Three steps with one release and three with the other are six steps with one."""
    train: list[Callable[..., None]] = [_train_with_the_other, _train]
    if others == "second half":
        train.reverse()
    train[0](configure(tmp_path / "both", training={"train_iters": FIRST}))
    train[1](configure(tmp_path / "both", training={"train_iters": LAST}))
    _train(configure(tmp_path / "whole", training={"train_iters": LAST}))
    assert outcome(tmp_path / "both") == outcome(tmp_path / "whole")
