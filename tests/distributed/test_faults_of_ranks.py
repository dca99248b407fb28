"""Ranks that die, hang, or are asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from megatron_huatuo.config import to_plain
from megatron_huatuo.storage.run_files import complete_checkpoints
from tests.distributed.conftest import STEPS
from tests.distributed.engine import launch_rank, outcome, read_log, read_status, wait_for_step
from tests.distributed.runner import started_ranks

TRAIN = Path(__file__).parents[2] / "tools" / "train.py"


@pytest.mark.parametrize("victim", [0, 1])
def test_kill_of_a_rank_stops_the_others_and_the_same_command_resumes(
    victim: int, tmp_path: Path, configure, finish, undisturbed
) -> None:
    with started_ranks(2, launch_rank, configure(tmp_path)) as ranks:
        wait_for_step(ranks, tmp_path, 5)
        ranks.send(victim, signal.SIGKILL)
        [code] = ranks.wait(60, [1 - victim])
        assert code == 1
    assert read_status(tmp_path)["state"] == "failed"
    assert f"rank {1 - victim}" in read_status(tmp_path)["reason"]
    assert "resuming from" in finish(configure(tmp_path))
    assert outcome(tmp_path) == undisturbed


def test_a_hanging_rank_ends_the_run_and_the_others_show_where_they_stand(tmp_path: Path, configure) -> None:
    timeout_minutes = 0.06
    config = configure(tmp_path, runtime={"distributed_timeout_minutes": timeout_minutes})
    with started_ranks(3, launch_rank, config_for_three(config)) as ranks:
        wait_for_step(ranks, tmp_path, 2)
        ranks.send(1, signal.SIGSTOP)
        codes = ranks.wait(60 * timeout_minutes + 45, [0, 2])
        assert codes == [1, 1]
        for rank in (0, 2):
            output = ranks.output(rank)
            assert f"rank {rank} waits in step" in output
            assert "most recent call first" in output and "train_step" in output
        assert "rank 1 waits" not in ranks.output()
    assert read_status(tmp_path)["state"] == "failed"


def config_for_three(config):
    config.training.global_batch_size = 3
    return config


def _hang_outside_of_collectives(config) -> int:
    from megatron_huatuo.train import loop

    os.environ["RANK"] = "0"
    loop.train_step = lambda *_, **__: time.sleep(600)
    return launch_rank(config)


def test_a_rank_that_hangs_by_itself_is_ended_by_the_watchdog(tmp_path: Path, configure) -> None:
    config = configure(tmp_path, runtime={"distributed_timeout_minutes": 0.05})
    with started_ranks(1, _hang_outside_of_collectives, config) as ranks:
        assert ranks.wait(0.05 * 60 + 45) == [1]
        assert "rank 0 ends itself: step 1 has not ended" in ranks.output()


@pytest.mark.parametrize(
    ("request_stop", "reason"),
    [
        (lambda ranks, _: ranks.send(1, signal.SIGTERM), "signal SIGTERM on rank 1"),
        (lambda ranks, _: ranks.send(0, signal.SIGUSR1), "signal SIGUSR1 on rank 0"),
        (lambda _, run_dir: (run_dir / "STOP").touch(), "file STOP"),
    ],
    ids=["SIGTERM", "SIGUSR1", "STOP"],
)
def test_a_request_to_stop_saves_and_ends_well(
    request_stop, reason: str, tmp_path: Path, configure, finish, undisturbed
) -> None:
    with started_ranks(2, launch_rank, configure(tmp_path)) as ranks:
        wait_for_step(ranks, tmp_path, 4)
        request_stop(ranks, tmp_path)
        assert ranks.wait(60) == [0, 0], ranks.output()[-4000:]
    status = read_status(tmp_path)
    assert (status["state"], status["reason"]) == ("stopped", reason)
    last = read_log(tmp_path)[-1]["iteration"]
    assert 4 <= status["iteration"] == last < STEPS
    assert complete_checkpoints(tmp_path / "checkpoints")[0].name == f"iter_{last:07d}"
    finish(configure(tmp_path))
    assert not (tmp_path / "STOP").exists()
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_worker_was_killed(tmp_path: Path, configure, undisturbed) -> None:
    settings = to_plain(configure(tmp_path / "run"))
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max-restarts", "1", str(TRAIN), "--config", str(tmp_path / "train.yaml")]
    path = os.pathsep.join(filter(None, [str(TRAIN.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with open(tmp_path / "output", "w+") as output:
        launcher = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            workers = wait_for_workers(launcher, tmp_path / "run" / "log.jsonl")
            workers[-1].kill()
            assert launcher.wait(180) == 0, (tmp_path / "output").read_text()[-4000:]
        finally:
            for process in psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else []:
                process.kill()
            launcher.kill()
    assert "resuming from" in (tmp_path / "output").read_text()
    assert read_status(tmp_path / "run")["state"] == "finished"
    assert outcome(tmp_path / "run") == undisturbed


def wait_for_workers(launcher: subprocess.Popen, log: Path) -> list[psutil.Process]:
    """The two workers, once they have trained five steps."""
    end = time.monotonic() + 180
    while not (log.is_file() and '"iteration": 5,' in log.read_text()):
        assert launcher.poll() is None and time.monotonic() < end, "no step 5"
        time.sleep(0.01)
    children = psutil.Process(launcher.pid).children(recursive=True)
    return [child for child in children if str(TRAIN) in child.cmdline()]
