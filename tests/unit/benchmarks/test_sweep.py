"""A sweep survives what becomes of its cases, and says of each how fast it was or why it was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from benchmarks import sweep
from benchmarks.settings import SweepBenchmark
from benchmarks.sweep_case import LAUNCH, Case, Outcome, run_case
from benchmarks.sweep_report import efficiency, write_report
from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.train.train_config import TrainConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path, sample_blend: Path, small_model: Path) -> str:
    config = TrainConfig()
    config.model.hf, config.data.blend, config.runtime.device = str(small_model), str(sample_blend), "cpu"
    config.training.precision, config.training.global_batch_size = "fp32", 4
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(to_plain(config)), encoding="utf-8")
    return str(path)


def sweep_of(config: str, directory: Path, **settings) -> list[dict]:
    return sweep.run(SweepBenchmark(config=config, directory=str(directory), warm_up=1, steps=2, **settings))


@pytest.mark.slow
def test_cases_that_run_out_of_memory_or_are_refused_leave_the_others_alone(config: str, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(
        "- {name: too large, model: {hf: null, preset: baichuan2-13b}}\n"
        "- {name: refused, training: {micro_batch_size: 3}}\n"
        "- {training: {micro_batch_size: 2}}\n"
    )
    limited = f"prlimit --as=3500000000 {LAUNCH}"
    records = sweep_of(config, tmp_path / "out", cases=str(cases), ranks=[1], launch=limited)
    too_large, refused, well = records
    assert too_large["outcome"] == "out of memory" and too_large["ours"] is None
    assert refused["outcome"].startswith("failed: ") and "wrong training.global_batch_size" in refused["outcome"]
    assert well["name"] == "sweep: TP 1, PP 1, DP 1, micro-batch 2, recompute none, 1 ranks"
    assert well["outcome"] == "ok" and well["ours"] == well["peer"] > 0 and well["ratio"] == 1.0
    assert [step["iteration"] for step in well["runs"]["ours"]] == [2, 3]
    assert json.loads((tmp_path / "out/sweep.json").read_text()) == records
    table = (tmp_path / "out/sweep.md").read_text()
    assert "| too large | 1 | 4 |" in table and "| out of memory |" in table
    assert (tmp_path / "out/sweep.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "out").rglob("*.distcp")) == []  # a case of 7B would write 100 GB


@pytest.mark.slow
def test_weak_scaling_on_one_two_and_four_ranks(config: str, tmp_path: Path) -> None:
    launch = (
        "{python} -m tests.fork_ranks {ranks} {train} --config {config}"  # the default one is taken by the test above
    )
    records = sweep_of(config, tmp_path / "out", scaling="weak", ranks=[1, 2, 4], launch=launch)
    assert [record["outcome"] for record in records] == ["ok"] * 3
    assert [record["ratio"] for record in records] == [record["ours"] / records[0]["ours"] for record in records]
    rows = [line.split(" | ")[1:3] for line in (tmp_path / "out/sweep.md").read_text().splitlines()[2:]]
    assert rows == [["1", "4"], ["2", "8"], ["4", "16"]]


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total", "out of memory"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
         "tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)", "out of memory"),
        ("exitcode  : -9 (pid: 4711)", "out of memory"),
        ("error: wrong parallel.tensor_model_parallel_size: got 3.", "failed: error: wrong parallel.tensor"),
        ("nothing to see", "failed: exit code 1"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure_is_found_in_its_output(tmp_path: Path, said: str, verdict: str) -> None:
    script = tmp_path / "launch"
    script.write_text(f'#!/bin/sh\ncat <<"END"\nstarting\n{said}\nEND\nexit 1\n')
    script.chmod(0o755)
    outcome = run_case(Case("one", 2, TrainConfig()), tmp_path / "case", SweepBenchmark(launch=f"{script} {{config}}"))
    assert outcome.verdict.startswith(verdict)


def await_end(process: int) -> bool:
    """Whether it ends, or is a zombie, within half a minute: SIGKILL takes a moment on a busy machine."""
    state = Path(f"/proc/{process}/stat")
    for _ in range(300):
        try:
            if state.read_text().split()[2] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_a_case_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    script = tmp_path / "launch"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! >{tmp_path}/child\nwait\n")
    script.chmod(0o755)
    outcome = run_case(
        Case("hangs", 2, TrainConfig()), tmp_path / "case", SweepBenchmark(launch=str(script), minutes=0.02)
    )
    assert outcome.verdict == "out of time"
    child = int((tmp_path / "child").read_text())
    assert await_end(child)


def test_a_sweep_that_is_stopped_leaves_nothing_running(tmp_path: Path) -> None:
    script = tmp_path / "launch"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! >{tmp_path}/child\nwait\n")
    script.chmod(0o755)
    code = (
        "from pathlib import Path; from benchmarks.sweep_case import *; "
        f"run_case(Case('stopped', 2, TrainConfig()), Path({str(tmp_path)!r}, 'case'), SweepBenchmark(launch={str(script)!r}))"
    )
    running = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    for _ in range(600):
        if (tmp_path / "child").is_file() and (tmp_path / "child").read_text().strip():
            break
        time.sleep(0.1)
    running.terminate()
    assert running.wait(60) == 143
    assert await_end(int((tmp_path / "child").read_text()))


def test_the_launcher_gets_the_numbers_of_the_case(tmp_path: Path) -> None:
    settings = SweepBenchmark(launch="echo {nodes} {ranks_per_node} {ranks} {config}", ranks_per_node=8)
    run_case(Case("three nodes", 24, TrainConfig()), tmp_path / "a b", settings)
    assert (tmp_path / "a b/output").read_text() == f"3 8 24 {tmp_path}/a b/train.yaml\n"


def test_without_a_list_the_plans_best_layouts_are_tried(config: str) -> None:
    base = sweep.parse_config(TrainConfig, sweep.read_yaml(config), config)
    found = list(sweep.find_cases(SweepBenchmark(best=3, ranks=[4], gpu="h100"), base))
    assert len({case.name for case in found}) == 3 and all(case.ranks == 4 for case in found)
    planned = [case.planned for case in found]
    assert planned == sorted(planned, reverse=True) and planned[-1] > 0


def test_strong_scaling_keeps_the_rows_of_a_step(config: str) -> None:
    base = sweep.parse_config(TrainConfig, sweep.read_yaml(config), config)
    found = list(sweep.find_cases(SweepBenchmark(scaling="strong", ranks=[4, 1, 2]), base))
    assert [(case.ranks, case.config.training.global_batch_size) for case in found] == [(1, 4), (2, 4), (4, 4)]


def test_efficiency_is_that_of_the_fewest_ranks_that_ran(tmp_path: Path) -> None:
    def outcome(ranks: int, tokens: float | None) -> Outcome:
        verdict = "ok" if tokens else "out of memory"
        return Outcome(Case(f"DP {ranks}", ranks, TrainConfig()), verdict, [], tokens, tokens and 512 / tokens)

    outcomes = [outcome(1, None), outcome(2, 1000.0), outcome(4, 900.0)]
    assert [efficiency(one, outcomes) for one in outcomes] == [None, 1.0, 0.9]
    write_report(outcomes, tmp_path, scaling="strong")
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    assert lines[2] == "| DP 1 | 1 | 128 |  |  |  |  |  |  | out of memory |"
    assert lines[4] == "| DP 4 | 4 | 128 | 0.569 | 900 |  |  |  | 90% | ok |"
    write_report(outcomes[:1], tmp_path, scaling=None)
    assert (tmp_path / "sweep.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scaling": "sideways"}, "wrong scaling: got 'sideways', need one of null, strong, weak"),
        ({"ranks": []}, r"wrong ranks: got \[\], need numbers of 1 or more"),
        ({"ranks": [0, 2]}, r"wrong ranks: got \[0, 2\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep.run(SweepBenchmark(directory=str(tmp_path), **settings))


@pytest.mark.parametrize("content", ["", "{a: 1}", "[1]"])
def test_a_list_of_cases_that_is_none_is_refused(tmp_path: Path, config: str, content: str) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(content)
    with pytest.raises(ConfigError, match=r"wrong cases: got .*, need a list of mappings \(.*cases.yaml\)"):
        sweep_of(config, tmp_path / "out", cases=str(cases))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{run_dir: there}]", r"wrong run_dir of a case: got 'there', need a mapping of settings \(.*cases.yaml\)"),
        ("[{ranks: 0}]", "wrong ranks of a case: got 0, need 1 or more"),
        ("[{speed: {}}]", "unknown key: got 'speed', need one of run_dir"),
        (
            "[{ranks: 64}]",
            "wrong ranks: got 64, need at most ranks_per_node = 8 on this machine. For several nodes name",
        ),
    ],
)
def test_cases_that_cannot_start_are_refused_before_the_first(
    tmp_path: Path, config: str, content: str, message: str
) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(content)
    with pytest.raises(ConfigError, match=message):
        sweep_of(config, tmp_path / "out", cases=str(cases))


def test_gpus_that_hold_no_layout_are_said(config: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no layout fits 3 × h100: tools/plan_run\.py --layouts says why"):
        sweep_of(config, tmp_path / "out", ranks=[3], launch="false")


@pytest.mark.slow
def test_the_slurm_script_starts_every_case_on_its_nodes(tmp_path: Path, config: str) -> None:
    """Slurm's commands replaced on PATH; srun runs nothing, so the cases fail, and are recorded."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\nprintf 'node-a\\nnode-b\\n'\n")
    (tools / "srun").write_text(f'#!/bin/sh\necho "$NNODES $GPUS_PER_NODE $MASTER_ADDR $MAX_RESTARTS $*" >>{calls}\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "4711"}
    environment = os.environ | slurm | {"SLURM_JOB_NUM_NODES": "2", "PATH": f"{tools}:{os.environ['PATH']}"}
    script, out = ROOT / "examples/slurm/sweep.sbatch", tmp_path / "out"
    flags = ["--config", config, "--scaling", "strong", "--ranks", "[8, 16]"]
    done = subprocess.run(["bash", script, out, *flags], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = calls.read_text().splitlines()
    assert first.startswith("1 8 node-a 0 --nodes=1 --ntasks=1 --ntasks-per-node=1 ")
    assert second.startswith("2 8 node-a 0 --nodes=2 --ntasks=2 ")
    assert second.endswith(f"examples/launch_node.sh {out}/case_01/train.yaml")
    assert [record["outcome"] for record in json.loads((out / "sweep.json").read_text())] == ["failed: exit code 0"] * 2
