"""Where tasks run: killed workers and killed runs, SLURM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_huatuo.corpus import ExecutorSettings, curate
from tests.unit import kill

TOOL = Path(__file__).parents[3] / "tools" / "curate_corpus.py"
FILES = ("documents.jsonl", "rejected.jsonl", "report.json", "report.png")
KILLS = 20


def write_inputs(folder, number_files, number_documents):
    folder.mkdir()
    for file in range(number_files):
        with open(folder / f"{file}.jsonl", "w", encoding="utf-8") as handle:
            for index in range(number_documents):
                text = (
                    f"第{file}批第{index * 31}号患者因反复头痛{index}天入院，血压{120 + index % 60}毫米汞柱。给予降压治疗，并于{index % 9}周后复查。"
                    * 3
                )
                row = {"id": f"{file}-{index}", "source": f"s{file}", "language": "zh", "text": text}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    return folder


def start(folder, output, *flags):
    command = [sys.executable, str(TOOL), "--input", f"{folder}/*.jsonl", "--output", str(output), *flags]
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


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


def assert_equal(output, expected):
    for name in FILES:
        assert (output / name).read_bytes() == expected[name], name


def test_a_killed_worker_ends_the_run_in_seconds_and_the_rerun_finishes(tmp_path):
    inputs, output = write_inputs(tmp_path / "in", 4, 3000), tmp_path / "out"
    process = start(inputs, output, "--workers", "2")
    worker = find_worker(process.pid, tmp_path / ".out.work")
    worker.kill()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and b"a worker was killed" in error and b"Traceback" not in error
    assert not output.exists()
    for path in inputs.iterdir():
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:20]))
    assert curate([f"{inputs}/*.jsonl"], output, execution=ExecutorSettings(workers=2))["documents_in"] == 80


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_in_seconds_and_leaves_no_output(workers, tmp_path):
    """The signal goes to the tool alone, as from a batch system: it must stop its workers itself."""
    inputs, output = write_inputs(tmp_path / "in", 2, 20_000), tmp_path / "out"
    process = start(inputs, output, "--workers", workers)
    worker = find_worker(process.pid, tmp_path / ".out.work")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130 and b"Traceback" not in error
    assert not output.exists() and not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running()


def test_an_error_does_not_wait_for_the_other_workers(tmp_path):
    inputs = write_inputs(tmp_path / "in", 2, 20_000)
    (inputs / "0.jsonl").write_text("torn\n")
    process = start(inputs, tmp_path / "out", "--workers", "2")
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert not list((tmp_path / ".out.work").glob("*/shards/00001")), "the other file was read to its end"


def find_worker(pid: int, work: Path) -> psutil.Process:
    """The process that writes an unfinished shard."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            try:
                if any(str(work) in file.path and "shards" in file.path for file in process.open_files()):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.01)
    raise AssertionError("no worker wrote a shard")


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


SBATCH = """#!/usr/bin/env bash
# Runs the tasks of an array at once, as a cluster would later.
script="${@: -1}"
array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
echo "$script" >> "$SBATCH_LOG"
if ! grep -q merge_stats "$script"; then
  for rank in $(seq 0 "$array"); do
    SLURM_ARRAY_TASK_ID=$rank SLURM_NODELIST=node1 RUN_OFFSET=0 bash "$script" >> "$SBATCH_LOG.out" 2>&1
  done
fi
echo "Submitted batch job 17"
"""
SRUN = """#!/usr/bin/env bash
while [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done
exec "$@"
"""
SCONTROL = "#!/usr/bin/env bash\necho node1\n"


def test_slurm_tasks_are_submitted_as_an_array_and_the_same_command_finishes(tmp_path, monkeypatch):
    """A stand-in for sbatch that runs datatrove's own launch script for every task of the array."""
    inputs, output = write_inputs(tmp_path / "in", 3, 10), tmp_path / "out"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, content in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(TOOL.parents[1]))
    monkeypatch.setenv("SBATCH_LOG", str(tmp_path / "sbatch.log"))
    execution = ExecutorSettings(executor="slurm", slurm_partition="cpu", workers=2)
    curate([f"{inputs}/*.jsonl"], output, execution=execution)
    report = curate([f"{inputs}/*.jsonl"], output, execution=execution)
    assert report["documents_in"] == 30, (tmp_path / "sbatch.log.out").read_text()
    curate([f"{inputs}/*.jsonl"], tmp_path / "local")
    assert (output / "documents.jsonl").read_bytes() == (tmp_path / "local" / "documents.jsonl").read_bytes()
