"""examples/slurm/train.sbatch on a real Slurm: each way a job can end, and what the next attempt makes of it.

Every run is of two nodes with one rank each. It must leave the curve of the run that nobody disturbed, bit for bit: a
learning rate depends on the rows of the blend and not on where a run is told to end, so that one curve serves all.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import NODES, Cluster, hard_kill, wait_until
from tests.slurm.conftest import ROOT

pytestmark = pytest.mark.slurm

STEPS = 45
START_S, END_S = 180.0, 300.0
Curve = list[tuple[float, ...]]


@dataclass(frozen=True)
class Run:
    """A run directory and the job that trains in it."""

    cluster: Cluster
    directory: Path
    job: str

    def log(self) -> str:
        """What the job has printed, all its attempts."""
        path = self.directory.with_suffix(".log")
        return path.read_text() if path.exists() else ""

    def curve(self) -> Curve:
        """(iteration, loss, gradient norm, learning rate, rows consumed) of every step, at full precision."""
        keys = ("iteration", "lm_loss", "grad_norm", "learning_rate", "consumed_train_samples")
        path = self.directory / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(json.loads(line)[key] for key in keys) for line in lines]

    def status(self) -> dict[str, object]:
        return json.loads((self.directory / "status.json").read_text())

    def starts(self) -> list[dict[str, dict[str, str]]]:
        return [json.loads(line) for line in (self.directory / "starts.jsonl").read_text().splitlines()]

    def has_step(self, iteration: int) -> bool:
        path = self.directory / "log.jsonl"
        return path.exists() and f'"iteration": {iteration},' in path.read_text()

    def wait_for_step(self, iteration: int) -> None:
        wait_until(lambda: self.has_step(iteration), START_S, lambda: f"step {iteration}\n{self.log()[-3000:]}")

    def hold_for_time_limit(self, iteration: int, attempt: int) -> None:
        """Let the attempt get to a step and no further before it is told that its time limit is near."""

        def is_told() -> bool:
            return self.log().count("time limit is near: asking the run to save and stop") == attempt

        wait_until(lambda: is_told() or self.has_step(iteration), START_S, lambda: self.log()[-3000:])
        held = [] if is_told() else ranks(self.cluster)
        for process in held:
            process.suspend()
        wait_until(is_told, 90, lambda: self.log()[-3000:])
        for process in held:
            process.resume()

    def wait_for_end(self, state: str) -> dict[str, str]:
        """Raises: AssertionError when Slurm's last word on the job is another."""
        facts = self.cluster.wait_for_end(self.job, END_S)
        assert facts["JobState"] == state, f"{facts}\n{self.log()[-5000:]}"
        return facts


def submit(
    cluster: Cluster,
    directory: Path,
    blend: Path,
    train_iters: int | None = None,
    *,
    save_interval: int = 10_000,
    limits: tuple[str, str] = ("--time=15", "--signal=B:USR1@20"),
    **environment: str,
) -> Run:
    """sbatch as docs/cluster.md has it, with the demo's configuration and flags in place of GPUs."""
    flags = ["--data.blend", str(blend), "--runtime.device", "cpu"]
    flags += [] if train_iters is None else ["--training.train_iters", str(train_iters)]
    flags += ["--checkpoint.save_interval", str(save_interval), "--logging.log_interval", "1"]
    log = directory.with_suffix(".log")
    script = [str(ROOT / "examples" / "slurm" / "train.sbatch"), "examples/toy_cpu/train.yaml", str(directory)]
    slurm = ["sbatch", "--parsable", "--nodes=2", "--gpus-per-node=0", f"--output={log}", f"--chdir={ROOT}", *limits]
    ours = {"GPUS_PER_NODE": "1", "PYTHON": sys.executable, "REPOSITORY": str(ROOT), **environment}
    return Run(cluster, directory, cluster.run(*slurm, *script, *flags, **ours))


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, long_blend: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that a person stops after STEPS."""
    run = submit(cluster, tmp_path_factory.mktemp("undisturbed") / "run", long_blend)
    run.wait_for_step(STEPS)
    (run.directory / "STOP").touch()
    run.wait_for_end("COMPLETED")
    return run


def assert_same_curve(run: Run, undisturbed: Run) -> None:
    curve = run.curve()
    assert len(curve) == STEPS and curve == undisturbed.curve()[:STEPS]


def test_stop_by_hand_ends_the_job_well_and_requeues_nothing(cluster: Cluster, undisturbed: Run) -> None:
    facts = cluster.job(undisturbed.job)
    assert (facts["Restarts"], facts["ExitCode"]) == ("0", "0:0")
    status, curve = undisturbed.status(), undisturbed.curve()
    assert (status["state"], status["reason"], status["iteration"]) == ("stopped", "file STOP", len(curve))
    assert "stopped on request: not requeued" in undisturbed.log()
    [start] = undisturbed.starts()
    assert start["job"]["SLURM_JOB_ID"] == undisturbed.job


def test_time_limit_stops_and_requeues_until_the_run_is_done(
    cluster: Cluster, long_blend: Path, undisturbed: Run, tmp_path: Path
) -> None:
    """Two attempts end by it, at any step: Slurm looks at limits every 30 s, from the start of slurmctld on, and signals up
    to 30 s early, so that 90 s before the end of 2 minutes is at the first look. For the third the limit is raised."""
    limits = ("--time=2", "--signal=B:USR1@90")
    run = submit(cluster, tmp_path / "run", long_blend, STEPS, limits=limits)
    for attempt in (1, 2):
        run.hold_for_time_limit(15 * attempt, attempt)
        cluster.wait_for_end(run.job, END_S, restarts=attempt)
    cluster.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=20")
    facts = run.wait_for_end("COMPLETED")
    assert run.log().count("requeueing\n") == 2 and facts["Restarts"] == "2"
    assert run.log().count("time limit is near: asking the run to save and stop") == 2
    assert len(run.starts()) == 3 and not (run.directory / "STOP").exists()
    assert run.status()["state"] == "finished"
    assert_same_curve(run, undisturbed)


def test_a_killed_rank_is_started_again_within_the_job(
    cluster: Cluster, long_blend: Path, undisturbed: Run, tmp_path: Path
) -> None:
    run = submit(cluster, tmp_path / "run", long_blend, STEPS, save_interval=20)
    run.wait_for_step(25)
    hard_kill(ranks(cluster, NODES[1]))
    facts = run.wait_for_end("COMPLETED")
    assert facts["Restarts"] == "0"
    first, second = run.starts()
    assert first["iteration"] == 0 and second["iteration"] == 20
    assert second["job"]["TORCHELASTIC_RESTART_COUNT"] == "1"
    assert_same_curve(run, undisturbed)


def test_a_job_that_got_further_is_requeued_and_one_that_gets_no_further_ends(
    cluster: Cluster, long_blend: Path, tmp_path: Path
) -> None:
    """A rank dies after a save, so the job comes again; by then the blend is gone, and no attempt can succeed."""
    blend = tmp_path / "blend"
    blend.symlink_to(long_blend)
    run = submit(cluster, tmp_path / "run", blend, save_interval=20, MAX_RESTARTS="0")
    run.wait_for_step(25)
    blend.unlink()
    hard_kill(ranks(cluster, NODES[1]))
    facts = run.wait_for_end("FAILED")
    assert facts["Restarts"] == "1" and facts["ExitCode"] != "0:0"
    first, _, second = run.log().partition("requeueing\n")
    assert "run is 'failed' after" in first and "error: file is missing" in second
    assert f"no step further than before: not requeued. Read {run.directory}/logs/{run.job}.1" in second


def test_scancel_leaves_a_checkpoint_and_the_same_command_resumes(
    cluster: Cluster, long_blend: Path, undisturbed: Run, tmp_path: Path
) -> None:
    run = submit(cluster, tmp_path / "run", long_blend, STEPS)
    run.wait_for_step(25)
    cluster.run("scancel", run.job)
    run.wait_for_end("CANCELLED")
    stopped = run.status()
    assert stopped["state"] == "stopped" and str(stopped["reason"]).startswith("signal SIGTERM"), run.log()[-3000:]
    again = submit(cluster, tmp_path / "run", long_blend, STEPS)
    again.wait_for_end("COMPLETED")
    assert [start["iteration"] for start in again.starts()] == [0, stopped["iteration"]]
    assert_same_curve(again, undisturbed)


def test_a_node_that_fails_is_found_and_slurm_requeues_the_job(
    cluster: Cluster, long_blend: Path, undisturbed: Run, tmp_path: Path
) -> None:
    """Without its node the job can neither end nor get further; the node comes back empty."""
    run = submit(cluster, tmp_path / "run", long_blend, STEPS, save_interval=20)
    run.wait_for_step(25)
    cluster.fail_node(NODES[1])
    wait_until(lambda: cluster.job(run.job)["JobState"] == "PENDING", 120, lambda: str(cluster.job(run.job)))
    assert "node failure" in run.log().lower()
    assert "requeueing\n" not in run.log(), "Slurm does it, not the script"
    cluster.start_slurmd(NODES[1])
    facts = run.wait_for_end("COMPLETED")
    assert facts["Restarts"] == "1" and [start["iteration"] for start in run.starts()] == [0, 20]
    assert_same_curve(run, undisturbed)


def test_nothing_of_a_job_is_left_on_the_nodes(cluster: Cluster, undisturbed: Run) -> None:
    wait_until(lambda: not ranks(cluster), 60, lambda: str(ranks(cluster)))


def ranks(cluster: Cluster, node: str | None = None) -> list[psutil.Process]:
    """Processes of tools/train.py that torchrun started."""
    found = cluster.processes("tools/train.py", node=node)
    return [process for process in found if not any("torch.distributed.run" in word for word in process.cmdline())]
