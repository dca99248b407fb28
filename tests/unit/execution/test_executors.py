"""Where tasks run: killed runs and killed workers, SLURM; curation is the stage that runs."""

from __future__ import annotations

import shutil
import signal

import psutil
import pytest

from megatron_huatuo.corpus import ExecutorSettings, curate
from megatron_huatuo.errors import ConfigError, HuatuoError
from tests.unit import kill
from tests.unit.execution import slurm
from tests.unit.execution.curation import FILES, assert_equal, find_worker, start, write_inputs

KILLS = 20


@pytest.mark.slow
def test_killed_at_any_moment_it_finishes_later_with_the_same_bytes(tmp_path):
    inputs, output = write_inputs(tmp_path / "in", 3, 30), tmp_path / "out"
    kill.run(curate, [f"{inputs}/*.jsonl"], tmp_path / "undisturbed")  # the first one also starts the fork server
    duration_s = kill.run(curate, [f"{inputs}/*.jsonl"], tmp_path / "undisturbed")
    expected = {name: (tmp_path / "undisturbed" / name).read_bytes() for name in FILES}
    next_moment = kill.random_moments(5, duration_s)
    kills = 0
    while kills < KILLS:
        kills += kill.run_and_kill(next_moment(), curate, [f"{inputs}/*.jsonl"], output)
        if (output / "manifest.json").exists():
            assert_equal(output, expected)
            shutil.rmtree(output)
    kill.run(curate, [f"{inputs}/*.jsonl"], output)
    assert_equal(output, expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", ".undisturbed.lock", "in", "out", "undisturbed"]


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_seconds_and_the_rerun_finishes(tmp_path):
    inputs, output = write_inputs(tmp_path / "in", 4, 3000), tmp_path / "out"
    process = start(inputs, output, "--workers", "2")
    worker = find_worker(process.pid, output)
    worker.kill()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and b"a worker was killed" in error and b"Traceback" not in error
    assert not output.exists()
    for path in inputs.iterdir():
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:20]))
    assert curate([f"{inputs}/*.jsonl"], output, execution=ExecutorSettings(workers=2))["documents_in"] == 80


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_in_seconds_and_leaves_no_output(workers, tmp_path):
    """The signal goes to the tool alone, as from a batch system: it must stop its workers itself."""
    inputs, output = write_inputs(tmp_path / "in", 2, 20_000), tmp_path / "out"
    process = start(inputs, output, "--workers", workers)
    worker = find_worker(process.pid, output)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130 and b"Traceback" not in error
    assert not output.exists() and not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running()


@pytest.mark.slow
def test_an_error_does_not_wait_for_the_other_workers(tmp_path):
    inputs = write_inputs(tmp_path / "in", 2, 20_000)
    (inputs / "0.jsonl").write_text("torn\n")
    process = start(inputs, tmp_path / "out", "--workers", "2")
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert not list((tmp_path / ".out.work").glob("*/shards/00001")), "the other file was read to its end"


@pytest.mark.slow
def test_an_error_in_a_worker_reaches_the_user_as_one_line(tmp_path):
    inputs = write_inputs(tmp_path / "in", 3, 5)
    (inputs / "1.jsonl").write_text("torn\n")
    process = start(inputs, tmp_path / "out", "--workers", "2")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    last = error.decode().strip().splitlines()[-1]
    assert (
        last.startswith("error: bad line: malformed JSON") and "1.jsonl:1" in last and "Traceback" not in error.decode()
    )


@pytest.mark.slow
def test_slurm_tasks_are_submitted_as_an_array_and_the_same_command_finishes(tmp_path, monkeypatch):
    inputs, output = write_inputs(tmp_path / "in", 3, 10), tmp_path / "out"
    slurm.stand_in(tmp_path, monkeypatch)
    execution = ExecutorSettings(executor="slurm", slurm_partition="cpu", workers=2)
    curate([f"{inputs}/*.jsonl"], output, execution=execution)
    report = curate([f"{inputs}/*.jsonl"], output, execution=execution)
    assert report["documents_in"] == 30, (tmp_path / slurm.OUTPUT).read_text()
    curate([f"{inputs}/*.jsonl"], tmp_path / "local")
    assert (output / "documents.jsonl").read_bytes() == (tmp_path / "local" / "documents.jsonl").read_bytes()


def test_without_slurms_programs_the_slurm_executor_is_refused(tmp_path, monkeypatch):
    inputs = write_inputs(tmp_path / "in", 1, 3)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="slurm executor needs sbatch: got no such program on PATH"):
        curate([f"{inputs}/*.jsonl"], tmp_path / "out", execution=ExecutorSettings("slurm", slurm_partition="cpu"))


def test_a_refusal_of_slurm_is_one_sentence(tmp_path, monkeypatch):
    inputs = write_inputs(tmp_path / "in", 1, 3)
    slurm.stand_in(tmp_path, monkeypatch)
    (tmp_path / "bin" / "sbatch").write_text("#!/usr/bin/env bash\nexit 3\n")
    with pytest.raises(
        HuatuoError, match=r"Slurm refused the tasks: got exit code 3 of sbatch.*--slurm-partition \(cpu\)"
    ):
        curate([f"{inputs}/*.jsonl"], tmp_path / "out", execution=ExecutorSettings("slurm", slurm_partition="cpu"))
