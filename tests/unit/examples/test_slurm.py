"""The batch script as a real process, with srun and scontrol replaced on PATH: signals, requeue, and when not to."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# A run as the batch script sees it: it removes an old STOP when it starts, then does what BEHAVIOUR says.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$CALLS"
env | grep -E '^(MASTER|NNODES|RUN_ID|LOG_DIR|GPUS_PER_NODE)' >>"$CALLS"
trap 'echo "srun got a signal" >>"$CALLS"' USR1 TERM
mkdir -p "$RUN/checkpoints"
status() { echo "{\\n  \\"state\\": \\"$1\\",\\n  \\"iteration\\": $2\\n}" | sed 's/\\\\n/\\n/g' >"$RUN/status.json"; }
status running 0
touch "$CALLS.started"
sleep "${SETUP_S:-0}"
rm -f "$RUN/STOP"
touch "$CALLS.running"
case $BEHAVIOUR in
  until_stop) for _ in $(seq 600); do if [[ -e $RUN/STOP ]]; then break; fi; sleep 0.05; done
    echo "$SAVED" >"$RUN/checkpoints/latest"; status stopped "$SAVED" ;;
  finish) echo "$SAVED" >"$RUN/checkpoints/latest"; status finished "$SAVED" ;;
  fail) echo "$SAVED" >"$RUN/checkpoints/latest"; status failed -1; exit 1 ;;
  crash) exit 137 ;;
esac
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'node-a\\nnode-b\\n'; else echo "scontrol $*" >>"$CALLS"; fi
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
            (self.run / "checkpoints").mkdir(parents=True)
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
        """state: "started" before the fake run removes STOP, "running" after it."""
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
    assert job.calls[0] == f"srun --kill-on-bad-exit=1 {launcher}"
    assert {"MASTER_ADDR=node-a", "MASTER_PORT=24711", "NNODES=2", "RUN_ID=4711.0"} <= set(job.calls)
    assert f"LOG_DIR={job.run}/logs/4711.0" in job.calls


def test_flags_for_srun_are_passed_on(job: Job) -> None:
    job.finish(job.start("finish", saved=9, SRUN_FLAGS="--container-image=image --mpi=none"))
    assert job.calls[0].startswith("srun --kill-on-bad-exit=1 --container-image=image --mpi=none examples/")


def test_time_limit_stops_the_run_by_file_and_requeues(job: Job) -> None:
    process = job.start("until_stop", saved=40, before=30)
    job.wait_until("running")
    process.send_signal(signal.SIGUSR1)
    code, text = job.finish(process)
    assert code == 0 and job.requeued, text
    assert "srun got a signal" not in job.calls, "the launcher must never see the signal"
    assert "stopped" in text and "asking the run to save" in text


def test_time_limit_during_start_is_not_forgotten(job: Job) -> None:
    """The run removes STOP while it starts; the request must outlive that."""
    process = job.start("until_stop", saved=40, before=30, SETUP_S="2.5")
    job.wait_until("started")
    process.send_signal(signal.SIGUSR1)
    code, text = job.finish(process)
    assert code == 0 and job.requeued, text


def test_stop_by_a_person_is_not_requeued(job: Job) -> None:
    process = job.start("until_stop", saved=40, before=30)
    job.wait_until("running")
    (job.run / "STOP").touch()
    code, text = job.finish(process)
    assert code == 0 and not job.requeued, text


def test_failure_after_progress_is_requeued_with_its_exit_code(job: Job) -> None:
    code, text = job.finish(job.start("fail", saved=60, before=30))
    assert code == 1 and job.requeued, text


@pytest.mark.parametrize("behaviour", ["fail", "crash"])
def test_failure_without_progress_is_not_requeued(job: Job, behaviour: str) -> None:
    code, text = job.finish(job.start(behaviour, saved=30, before=30))
    assert code == {"fail": 1, "crash": 137}[behaviour] and not job.requeued, text
    assert "no step further than before" in text


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


def test_nothing_is_left_running(job: Job) -> None:
    process = job.start("until_stop", saved=40, before=30)
    job.wait_until("running")
    process.send_signal(signal.SIGUSR1)
    job.finish(process)
    (job.run / "STOP").unlink(missing_ok=True)
    time.sleep(1.3)
    assert not (job.run / "STOP").exists()
