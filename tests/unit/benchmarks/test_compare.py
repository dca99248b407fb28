"""Two benchmark records: what changed beyond noise, and an exit code for CI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import compare_commands, compare_records, format_changes
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.log import get_logger
from tests.tool_process import run_tool

ROOT = Path(__file__).parents[3]


def record(name: str, times: list[float], peer: list[float], unit: str = "rows/s", **others: Any) -> dict[str, Any]:
    ours, theirs = (100 / sorted(values)[len(values) // 2] for values in (times, peer))
    runs = {"ours": [{"wall_s": t, "cpu_s": t} for t in times], "peer": [{"wall_s": t, "cpu_s": t} for t in peer]}
    found = {
        "name": name,
        "ours": ours,
        "peer": theirs,
        "ratio": ours / theirs,
        "unit": unit,
        "machine": "m",
        "runs": runs,
    }
    return found | others


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text(json.dumps(list(records)))
    return path


QUIET = [1.0, 1.01, 0.99, 1.0, 1.0]


def test_a_change_counts_when_it_exceeds_the_noise_of_both(tmp_path: Path) -> None:
    before = write(tmp_path / "a.json", record("x", QUIET, QUIET), record("noisy", [1.0, 2.0, 0.5, 1.6, 0.7], QUIET))
    after = write(
        tmp_path / "b.json",
        record("x", [0.5 * t for t in QUIET], QUIET),
        record("noisy", [1.2, 2.2, 0.6, 1.7, 0.9], QUIET),
    )
    faster, noisy = compare_records(before, after)
    assert faster.change == pytest.approx(1.0) and faster.verdict == "better" and faster.what == "× the peer"
    assert noisy.verdict == "within noise" and noisy.noise > 0.2
    assert [change.verdict for change in compare_records(after, before)] == ["worse", "within noise"]
    assert "+100.0%" in format_changes([faster])


def test_a_busy_machine_does_not_look_like_a_regression(tmp_path: Path) -> None:
    """Ours and the peer both twice as slow: the ratio is the same."""
    before = write(tmp_path / "a.json", record("x", QUIET, QUIET))
    after = write(tmp_path / "b.json", record("x", [2 * t for t in QUIET], [2 * t for t in QUIET]))
    assert compare_records(before, after)[0].verdict == "within noise"


def test_seconds_are_better_when_they_are_fewer(tmp_path: Path) -> None:
    plain = {"ratio": None, "runs": {}}
    before = write(tmp_path / "a.json", record("start", QUIET, QUIET, "s", **plain) | {"ours": 10.0})
    after = write(tmp_path / "b.json", record("start", QUIET, QUIET, "s", **plain) | {"ours": 5.0})
    assert compare_records(before, after)[0].verdict == "better"


@pytest.mark.parametrize(
    ("unit", "runs"),
    [
        ("MiB (smaller is better)", {"ours": [100.0, 101.0], "peer": [50.0, 51.0]}),
        ("MiB (smaller is better)", 1),
        ("s beyond imports", {"ours": [{"start_s": 4.0, "launch_s": 1.0}]}),
        ("s", {"ours": [{"stall_s": 0.1, "steps": 3}], "peer": [{"stall_s": 1.0, "steps": 0}]}),
    ],
)
def test_a_cost_is_better_when_it_is_smaller_against_the_peer_too(
    tmp_path: Path, unit: str, runs: dict[str, Any] | int
) -> None:
    before = write(tmp_path / "a.json", record("x", QUIET, QUIET, unit, ratio=1.0, runs=runs))
    after = write(tmp_path / "b.json", record("x", QUIET, QUIET, unit, ratio=2.0, runs=runs))
    assert [compare_records(*files)[0].verdict for files in ((before, after), (after, before))] == ["worse", "better"]


def test_a_case_of_a_sweep_without_a_figure_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is an entry of the run's log."""
    monkeypatch.setattr(get_logger("megatron_huatuo"), "propagate", True)
    well = record("y", QUIET, QUIET, "tokens/s/rank", runs={"ours": [{"iteration": 2, "step_time_s": 1.0}]})
    failed = record("x", QUIET, QUIET, "tokens/s/rank", runs={"ours": []}, ratio=None, ours=None)
    records = write(tmp_path / "a.json", well, failed)
    assert [change.name for change in compare_records(records, records)] == ["y"]
    assert "no figure above 0 in one of the records: x" in caplog.text


def test_records_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", record("x", QUIET, QUIET))
    with pytest.raises(ConfigError, match=r"records have no figure in common: .*a\.json and .*b\.json"):
        compare_records(first, write(tmp_path / "b.json", record("y", QUIET, QUIET)))
    (tmp_path / "c.json").write_text('{"kind": "blend"}')
    with pytest.raises(ConfigError, match=r"no benchmark records: .*c\.json is not a list of them"):
        compare_records(first, tmp_path / "c.json")


@pytest.mark.slow
def test_commands_are_run_in_turn_and_a_failing_one_is_named() -> None:
    fast = "sleep 0.3"  # long against a start that other work delays
    wall, _ = compare_commands("sleep 1.2", fast, repeats=3)
    assert wall.verdict == "better" and wall.after < wall.before
    with pytest.raises(ConfigError, match="command failed with exit code 3"):
        compare_commands(fast, f"{sys.executable} -c 'raise SystemExit(3)'", repeats=1)


def test_the_tool_exits_with_one_when_something_got_worse(tmp_path: Path) -> None:
    good = write(tmp_path / "a.json", record("x", QUIET, QUIET))
    bad = write(tmp_path / "b.json", record("x", [2 * t for t in QUIET], QUIET))
    for before, after, code in ((good, bad, 1), (bad, good, 0)):
        command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "compare", str(before), str(after)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert ("worse" in done.stdout) == (code == 1)


@pytest.mark.parametrize("command", [("train",), ("blend",), ("compare", "true", "true")])
def test_no_repetition_is_refused(command: tuple[str, ...]) -> None:
    done = run_tool("benchmark", *command, "--repeats", 0)
    assert (done.returncode, done.stderr) == (1, "error: wrong repeats: got 0, need 1 or more.\n")
