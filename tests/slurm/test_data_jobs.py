"""Curation and unification as arrays of jobs on a real Slurm without accounting: the bytes of a local run, each task once."""

from __future__ import annotations

import getpass
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import ROOT

pytestmark = pytest.mark.slurm

DATA = ROOT / "examples" / "toy_cpu" / "data"
ON_SLURM = ("--executor", "slurm", "--slurm-partition", "main", "--memory-gib", "1", "--slurm-time", "00:10:00")


def run_tool(cluster: Cluster, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / f"{name}.py", *arguments],
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )


def wait_for_jobs(cluster: Cluster) -> None:
    """Also: a job that nobody runs, such as one whose dependency failed, would stay."""
    wait_until(lambda: not cluster.jobs(), 180, lambda: cluster.run("squeue"))


def assert_equal(folder: Path, expected: Path, *names: str) -> None:
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_curation_and_unification_give_the_bytes_of_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    """In a folder whose name needs quotes; the same command submits, waits its turn, and finishes."""
    outputs = {where: tmp_path / f"{where} 输出" for where in ("slurm", "local")}
    for where, output in outputs.items():
        curate = ("curate_corpus", "--input", DATA / "web.jsonl", DATA / "books.jsonl", "--output", output / "corpus")
        unify = ("unify_corpus", "--input", output / "corpus" / "documents.jsonl", "--output", output / "unified")
        for stage in (curate, (*unify, "--documents-per-task", "60")):
            if where == "local":
                done = run_tool(cluster, *stage)
            else:
                submitted = run_tool(cluster, *stage, *ON_SLURM, "--workers", "2")
                assert submitted.returncode == 0 and "tasks are Slurm job" in submitted.stderr, submitted.stderr
                wait_for_jobs(cluster)
                done = run_tool(cluster, *stage, *ON_SLURM)
            assert done.returncode == 0, done.stderr
    assert_equal(outputs["slurm"] / "corpus", outputs["local"] / "corpus", "documents.jsonl", "rejected.jsonl")
    assert_equal(outputs["slurm"] / "unified", outputs["local"] / "unified", "conversations.jsonl", "rejected.jsonl")


def test_tasks_that_wait_are_not_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    curate = ("curate_corpus", "--input", DATA / "web.jsonl", DATA / "books.jsonl", "--output", tmp_path / "corpus")
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        first = run_tool(cluster, *curate, *ON_SLURM)
        [job] = cluster.jobs()
        second = run_tool(cluster, *curate, *ON_SLURM)
        assert (first.returncode, second.returncode) == (0, 0)
        assert f"2 tasks of Slurm job {job} still wait or run: nothing is submitted" in second.stderr
        assert cluster.jobs() == {job}
    finally:
        cluster.run("scancel", f"--user={getpass.getuser()}")
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")


def test_a_task_that_failed_is_named_and_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    bad = tmp_path / "in.jsonl"
    bad.write_text("torn\n")
    curate = ("curate_corpus", "--input", bad, DATA / "books.jsonl", "--output", tmp_path / "corpus", *ON_SLURM)
    assert run_tool(cluster, *curate).returncode == 0
    wait_for_jobs(cluster)
    again = run_tool(cluster, *curate)
    assert "1 of 2 tasks did not finish in Slurm job" in again.stderr and "what they said: " in again.stderr
    logs = Path(again.stderr.partition("what they said: ")[2].splitlines()[0])
    assert any("malformed JSON" in path.read_text() for path in logs.glob("*.out"))
    wait_for_jobs(cluster)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--slurm-partition", "nosuch"), "Slurm refused the tasks: got exit code 1 of sbatch"),
        (("--slurm-time", "soon"), "Check --slurm-partition (main), --slurm-time (soon)"),
    ],
)
def test_what_slurm_refuses_is_one_sentence(
    cluster: Cluster, flags: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    curate = ("curate_corpus", "--input", DATA / "books.jsonl", "--output", tmp_path / "corpus", *ON_SLURM, *flags)
    done = run_tool(cluster, *curate)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_a_cluster_without_accounting_is_what_these_tests_run_on(cluster: Cluster) -> None:
    """sacct knows nothing here, so nothing above has asked it."""
    assert (
        "accounting storage is disabled"
        in subprocess.run(["sacct"], env=cluster.environment, capture_output=True, text=True).stderr
    )
