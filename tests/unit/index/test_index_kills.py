"""The index tool under fire: killed workers, a killed tool, Ctrl-C. Nothing half-written, nothing hangs, reruns finish."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_huatuo.errors import DataError, HuatuoError
from megatron_huatuo.index.workers import ordered_map

TOOL = Path(__file__).parents[3] / "tools/preprocess_data.py"
SUFFIXES = ("bin", "idx", "origin.npy", "json")
# The promise is an end in seconds; the limit is generous because a test machine may be busy.
END_S = 20


@pytest.fixture(scope="module")
def job(tmp_path_factory, trained):
    """(command, output folder, bytes of an undisturbed run, its seconds); about a dozen chunks."""
    directory = tmp_path_factory.mktemp("kills")
    line = {"conversations": [{"from": "human", "value": "高血压？"}, {"from": "gpt", "value": "低盐。" * 60}]}
    text = json.dumps(line, ensure_ascii=False) + "\n"
    (directory / "a.jsonl").write_text(text * (3_000_000 // len(text.encode())), encoding="utf-8")
    command = [sys.executable, str(TOOL), "--input", str(directory / "a.jsonl"), "--workers", "2"]
    command += ["--output-prefix", str(directory / "out/p"), "--tokenizer", str(trained)]
    started = time.monotonic()
    assert run(command).wait(END_S) == 0
    return command, directory / "out", read_all(directory / "out"), time.monotonic() - started


def run(command, **options):
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)


def read_all(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def clear(directory):
    for path in directory.iterdir():
        if path.is_file():
            path.unlink()


def wait_for_workers(process, count=2):
    """The tokenising processes of the tool, once they are there; fewer when it has ended before."""
    while process.poll() is None:
        found = [
            child for child in psutil.Process(process.pid).children() if "import serve" in " ".join(cmdline(child))
        ]
        if len(found) == count:
            return found
        time.sleep(0.005)
    return []


def cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def check_nothing_half_written(directory, expected):
    """Every final name is absent or complete, and the manifest never stands alone."""
    found = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    assert all(content == expected[name] for name, content in found.items())
    if "p.json" in found:
        assert set(found) == set(expected)


@pytest.mark.slow
def test_a_killed_worker_ends_the_tool_and_a_rerun_finishes(job):
    command, directory, expected, duration = job
    rng = random.Random(0)
    killed = 0
    for _ in range(10):
        clear(directory)
        process = run(command)
        workers = wait_for_workers(process)
        time.sleep(rng.random() * duration / 3)
        for worker in rng.sample(workers, k=min(1, len(workers))):
            with_signal = rng.choice([signal.SIGKILL, signal.SIGTERM])
            try:
                worker.send_signal(with_signal)
            except psutil.NoSuchProcess:
                continue
        _, errors = process.communicate(timeout=END_S)
        if process.returncode != 0:  # otherwise the worker had done its part already
            killed += 1
            assert process.returncode == 1
            assert "a worker process died (killed by signal" in errors and "Traceback" not in errors
            assert list(directory.iterdir()) == []
        assert not [worker for worker in workers if worker.is_running()]
        check_nothing_half_written(directory, expected)
    assert killed >= 3
    assert run(command).wait(END_S) == 0
    assert read_all(directory) == expected


@pytest.mark.slow
def test_a_killed_tool_leaves_nothing_half_and_a_rerun_finishes(job):
    command, directory, expected, duration = job
    rng = random.Random(1)
    clear(directory)
    for _ in range(20):
        process = run(command)
        delay = rng.random() * duration
        workers = wait_for_workers(process) if delay > duration / 2 else []
        time.sleep(max(0.0, delay - duration / 2))
        process.kill()
        process.communicate(timeout=END_S)
        psutil.wait_procs(workers, timeout=END_S)
        assert not [worker for worker in workers if worker.is_running()], "workers outlive their tool"
        check_nothing_half_written(directory, expected)
    assert run(command).wait(END_S) == 0
    assert read_all(directory) == expected, "what the killed runs left is gone"


@pytest.mark.slow
def test_ctrl_c_ends_the_whole_group_without_a_trace(job):
    command, directory, _, _ = job
    clear(directory)
    process = run(command, start_new_session=True)
    workers = wait_for_workers(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130 and "interrupted" in errors
    assert "Traceback" not in errors
    psutil.wait_procs(workers, timeout=END_S)
    assert list(directory.iterdir()) == []


def double(number):
    return 2 * number


def fail_at_seven(number):
    if number == 7:
        raise DataError("seven: got 7, need another")
    return number


def die_at_seven(number):
    if number == 7:
        os._exit(3)
    return number


def wait_first(number):
    time.sleep(0.3 if number == 0 else 0)
    return number


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_results_come_in_the_order_of_the_items(workers, count):
    assert list(ordered_map(double, range(count), workers)) == [2 * number for number in range(count)]


def test_a_slow_item_holds_back_the_others_within_bounds():
    taken = []

    def items():
        for number in range(60):
            taken.append(number)
            yield number

    results = ordered_map(wait_first, items(), 2)
    assert next(results) == 0
    assert len(taken) <= 12, "items are not read far ahead of the results"
    assert list(results) == list(range(1, 60))


def test_a_workers_error_is_raised_as_it_is_and_a_dead_worker_too():
    with pytest.raises(DataError, match="seven: got 7, need another"):
        list(ordered_map(fail_at_seven, range(40), 2))
    with pytest.raises(HuatuoError, match=r"a worker process died \(exit code 3\)"):
        list(ordered_map(die_at_seven, range(40), 2))
