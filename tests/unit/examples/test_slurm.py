"""The batch script as a real process, with srun and scontrol replaced on PATH: signals, requeue, and when not to."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# A run as the batch script sees it, doing what BEHAVIOUR says. Like the real one it counts a STOP from before its start,
# and removes the file when it stops by it; torchrun takes a while to end after that.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$CALLS"
env | grep -E '^(MASTER|NNODES|RUN_ID|LOG_DIR|GPUS_PER_NODE|HOST_SUFFIX|PYTHON=)' >>"$CALLS"
trap 'echo "srun got a signal" >>"$CALLS"' USR1 TERM
mkdir -p "$RUN/checkpoints"
status() { echo "{\\n  \\"state\\": \\"$1\\",\\n  \\"iteration\\": $2\\n}" | sed 's/\\\\n/\\n/g' >"$RUN/status.json"; }
status running 0
touch "$CALLS.started"
save() { echo "$SAVED" >"$RUN/checkpoints/latest"; }
stop() { save; status stopped "$SAVED"; rm -f "$RUN/STOP"; sleep 1.2; exit 0; }
sleep "${SETUP_S:-0}"
touch "$CALLS.running"
case $BEHAVIOUR in
  until_stop) for _ in $(seq 600); do if [[ -e $RUN/STOP ]]; then stop; fi; sleep 0.05; done ;;
  finish) if [[ -e $RUN/STOP ]]; then stop; fi; save; status finished "$SAVED" ;;
  fail_at_stop) for _ in $(seq 600); do if [[ -e $RUN/STOP ]]; then break; fi; sleep 0.05; done
    save; status failed -1; exit 1 ;;
  fail) echo "$SAVED" >"$RUN/checkpoints/latest"; status failed -1; exit 1 ;;
  crash) exit 137 ;;
esac
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'node-a\\nnode-b\\n'; else echo "scontrol $*" >>"$CALLS"; [[ -z ${REFUSES:-} ]]; fi
"""


class Job:
    """One attempt of a job. saved: step of the checkpoint that the fake run leaves; before: the one it finds."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run dir"
        self.calls_file = folder / "calls"
        tools = folder / "bin"
        tools.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "2",
            "CALLS": str(self.calls_file),
            "RUN": str(self.run),
        }

    def start(self, behaviour: str, saved: int, before: int | None = None, **more: str) -> subprocess.Popen[str]:
        if before is not None:
            (self.run / "checkpoints").mkdir(parents=True, exist_ok=True)
            (self.run / "checkpoints" / "latest").write_text(f"{before}\n")
        script = ROOT / "examples" / "slurm" / "train.sbatch"
        return subprocess.Popen(
            ["bash", script, "examples/huatuo2_13b/train.yaml", str(self.run), "--training.train_iters", "9"],
            env={**self.environment, "BEHAVIOUR": behaviour, "SAVED": str(saved), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        text, _ = process.communicate(timeout=60)
        return process.returncode, text

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    @property
    def requeued(self) -> bool:
        return "scontrol requeue 4711" in self.calls

    def wait_until(self, state: str) -> None:
        """state: "started" before the fake run's SETUP_S, "running" after it."""
        deadline = time.monotonic() + 30
        while not Path(f"{self.calls_file}.{state}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_every_node_gets_one_launcher_and_the_address_of_the_first(job: Job) -> None:
    code, text = job.finish(job.start("finish", saved=9))
    assert code == 0, text
    assert not job.requeued
    launcher = f"examples/launch_node.sh examples/huatuo2_13b/train.yaml --run_dir {job.run} --training.train_iters 9"
    assert job.calls[0] == f"srun --kill-on-bad-exit=1 --cpu-bind=none {launcher}"
    assert {"MASTER_ADDR=node-a", "MASTER_PORT=24711", "NNODES=2", "RUN_ID=4711.0"} <= set(job.calls)
    assert f"LOG_DIR={job.run}/logs/4711.0" in job.calls


def test_a_master_that_the_user_set_stays(job: Job) -> None:
    code, text = job.finish(job.start("finish", saved=9, MASTER_ADDR="node-ai", MASTER_PORT="12345"))
    assert code == 0, text
    assert {"MASTER_ADDR=node-ai", "MASTER_PORT=12345"} <= set(job.calls)


def test_nodes_that_reach_each_other_by_a_suffix(job: Job) -> None:
    job.finish(job.start("finish", saved=9, HOST_SUFFIX="i"))
    assert {"MASTER_ADDR=node-ai", "HOST_SUFFIX=i"} <= set(job.calls)


def test_a_relative_run_directory_is_one_for_all(job: Job, tmp_path: Path) -> None:
    """The same folder whatever the working directory of a rank is; a repository of its own keeps this one clean."""
    repository = tmp_path / "repository"
    repository.mkdir()
    environment = {**job.environment, "BEHAVIOUR": "finish", "SAVED": "9", "REPOSITORY": str(repository)}
    script = ROOT / "examples" / "slurm" / "train.sbatch"
    subprocess.run(["bash", script, "train.yaml", "runs/a"], env=environment, capture_output=True, timeout=60)
    assert job.calls[0].endswith(f"launch_node.sh train.yaml --run_dir {repository}/runs/a")
    assert f"LOG_DIR={repository}/runs/a/logs/4711.0" in job.calls


def test_a_container_sees_repository_run_directory_and_what_is_named(job: Job) -> None:
    job.finish(job.start("finish", saved=9, CONTAINER_IMAGE="/images/a.sqsh", CONTAINER_MOUNTS="/data:/data"))
    flags = f"--container-image=/images/a.sqsh --container-workdir={ROOT} "
    flags += f"--container-mounts={ROOT}:{ROOT},{job.run}:{job.run},/data:/data"
    assert job.calls[0].startswith(f"srun --kill-on-bad-exit=1 --cpu-bind=none {flags} examples/launch_node.sh ")
    assert "PYTHON=python3" in job.calls, "the host's .venv is no interpreter of the image"


@pytest.mark.slow
def test_a_requeue_that_slurm_refuses_is_an_error(job: Job) -> None:
    process = job.start("until_stop", saved=40, before=30, REFUSES="yes")
    job.wait_until("running")
    process.send_signal(signal.SIGUSR1)
    code, text = job.finish(process)
    assert code == 1 and "Slurm does not requeue job 4711. Submit the same command again: it resumes at 40." in text


def test_flags_for_srun_are_passed_on(job: Job) -> None:
    job.finish(job.start("finish", saved=9, SRUN_FLAGS="--container-image=image --mpi=none"))
    assert job.calls[0].startswith(
        "srun --kill-on-bad-exit=1 --cpu-bind=none --container-image=image --mpi=none examples/"
    )


@pytest.mark.slow
def test_time_limit_stops_the_run_by_file_and_requeues(job: Job) -> None:
    process = job.start("until_stop", saved=40, before=30)
    job.wait_until("running")
    process.send_signal(signal.SIGUSR1)
    code, text = job.finish(process)
    assert code == 0 and job.requeued, text
    assert "srun got a signal" not in job.calls, "the launcher must never see the signal"
    assert "stopped" in text and "asking the run to save" in text


@pytest.mark.slow
def test_time_limit_during_start_is_not_forgotten(job: Job) -> None:
    process = job.start("until_stop", saved=40, before=30, SETUP_S="2.5")
    job.wait_until("started")
    process.send_signal(signal.SIGUSR1)
    code, text = job.finish(process)
    assert code == 0 and job.requeued, text


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["until_stop", "fail_at_stop"])
def test_the_attempt_after_a_time_limit_runs_to_the_end(job: Job, behaviour: str) -> None:
    """Whether the run stops by the script's STOP or fails meanwhile, none is left to stop the next attempt."""
    process = job.start(behaviour, saved=40, before=30)
    job.wait_until("running")
    process.send_signal(signal.SIGUSR1)
    _, text = job.finish(process)
    assert job.requeued, text
    assert not (job.run / "STOP").exists()
    code, text = job.finish(job.start("finish", saved=90, SLURM_RESTART_COUNT="1"))
    assert code == 0 and "run is 'finished' after 90 steps" in text, text


@pytest.mark.slow
def test_the_attempt_after_a_killed_job_runs_to_the_end(job: Job) -> None:
    """Slurm kills the script itself where a save outlasts the time limit; its STOP must not stop the next job."""
    process = job.start("until_stop", saved=40, SETUP_S="2")
    job.wait_until("started")
    process.send_signal(signal.SIGUSR1)
    stop = job.run / "STOP"
    while not (left := stop.read_text() if stop.exists() else ""):
        time.sleep(0.02)
    process.kill()
    job.finish(process)
    stop.write_text(left)  # the fake run outlives the script, and has taken it
    code, text = job.finish(job.start("finish", saved=90))
    assert code == 0 and "run is 'finished'" in text, text


@pytest.mark.slow
def test_stop_by_a_person_is_not_requeued(job: Job) -> None:
    process = job.start("until_stop", saved=40, before=30)
    job.wait_until("running")
    (job.run / "STOP").touch()
    code, text = job.finish(process)
    assert code == 0 and not job.requeued, text


@pytest.mark.slow
def test_stop_by_a_person_ends_the_chain_though_the_time_limit_is_near(job: Job) -> None:
    process = job.start("until_stop", saved=40, before=30, SETUP_S="1")
    job.wait_until("started")
    (job.run / "STOP").touch()
    process.send_signal(signal.SIGUSR1)
    code, text = job.finish(process)
    assert code == 0 and not job.requeued, text


@pytest.mark.slow
def test_stop_by_a_person_between_two_attempts_counts(job: Job) -> None:
    job.run.mkdir()
    (job.run / "STOP").touch()
    code, text = job.finish(job.start("finish", saved=31, before=30))
    assert code == 0 and "stopped on request" in text and not job.requeued, text


def test_failure_after_progress_is_requeued_with_its_exit_code(job: Job) -> None:
    code, text = job.finish(job.start("fail", saved=60, before=30))
    assert code == 1 and job.requeued, text


@pytest.mark.parametrize("behaviour", ["fail", "crash"])
def test_failure_without_progress_is_not_requeued(job: Job, behaviour: str) -> None:
    code, text = job.finish(job.start(behaviour, saved=30, before=30))
    assert code == {"fail": 1, "crash": 137}[behaviour] and not job.requeued, text
    assert "no step further than before" in text


@pytest.mark.slow
def test_time_limit_too_short_for_one_step_is_not_requeued_for_ever(job: Job) -> None:
    process = job.start("until_stop", saved=30, before=30)
    job.wait_until("running")
    process.send_signal(signal.SIGUSR1)
    code, text = job.finish(process)
    assert code == 1 and not job.requeued, text


def test_old_status_does_not_speak_for_a_crash(job: Job) -> None:
    job.run.mkdir()
    (job.run / "status.json").write_text('{\n  "state": "finished"\n}')
    (job.calls_file).touch()
    code, _ = job.finish(job.start("crash", saved=0))
    assert code == 137 and not job.requeued
