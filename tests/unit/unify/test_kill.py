"""kill -9 at random moments: the rerun finishes with the same bytes, and no answered request is asked again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.unify import unify
from tests.unit import kill
from tests.unit.unify.conftest import same_bytes
from tests.unit.unify.endpoint_server import EndpointServer, Reply, slow_writer

KILLS = 20
CONCURRENCY = 4


def start(documents: Path, output: Path, *flags: str) -> subprocess.Popen[bytes]:
    return kill.start_tool("unify_corpus", "--input", documents, "--output", output, *flags)


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "settings"), [(60, {}), (30, {"documents_per_task": 8})])
def test_killed_at_any_moment_it_repeats_no_answered_request_and_ends_with_the_same_bytes(
    number, settings, write_documents, tmp_path
):
    """As one task and as several."""
    documents, output, undisturbed = write_documents(number), tmp_path / "out", tmp_path / "undisturbed"
    with EndpointServer(slow_writer(0.01)) as server:
        settings = {"backend": "openai", "base_url": server.base_url, "model": "m", "max_concurrency": CONCURRENCY,
                    **settings}  # fmt: skip
        kill.run(unify, [documents], undisturbed, **settings)  # the first one also starts the fork server
        forget(server, undisturbed)
        duration_s = kill.run(unify, [documents], undisturbed, **settings)
        server.asked.clear()
        next_moment = kill.random_moments(7, duration_s)
        kills = kills_of_this_output = 0
        while kills < KILLS:
            killed = kill.run_and_kill(next_moment() / 2, unify, [documents], output, **settings)
            kills, kills_of_this_output = kills + killed, kills_of_this_output + killed
            if (output / "manifest.json").exists():
                assert same_bytes(undisturbed, output)
                assert_few_repeats(server, kills_of_this_output)
                forget(server, output)
                kills_of_this_output = 0
        kill.run(unify, [documents], output, **settings)
        assert same_bytes(undisturbed, output)
        assert_few_repeats(server, kills_of_this_output)
    assert not list(tmp_path.glob("*.work")) and not list(tmp_path.glob(".*.tmp"))


def assert_few_repeats(server: EndpointServer, kills: int) -> None:
    """Only what was in flight at a kill may be asked twice."""
    repeats = sum(count - 1 for count in Counter(json.dumps(asked.payload) for asked in server.asked).values())
    assert repeats <= CONCURRENCY * kills


def forget(server: EndpointServer, output: Path) -> None:
    server.asked.clear()
    shutil.rmtree(output)
    shutil.rmtree(output.with_name(f"{output.name}.requests"))


@pytest.mark.slow
def test_an_answered_request_is_committed_before_the_run_goes_on(write_documents, tmp_path):
    """One request at a time: a kill can lose one reply at most, and the log counts it."""
    documents, output = write_documents(30), tmp_path / "out"
    with EndpointServer() as server:
        flags = ["--backend", "openai", "--base-url", server.base_url, "--model", "m", "--max-concurrency", "1"]
        process = start(documents, output, *flags)
        while len(server.asked) < 10:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        finish(start(documents, output, *flags))
        payloads = Counter(json.dumps(asked.payload) for asked in server.asked)
    assert sum(payloads.values()) - len(payloads) <= 1 and len(payloads) == 60
    ledger = json.loads((output / "ledger.json").read_text())
    assert ledger["requests"] == 60 and ledger["requests_without_reply"] <= 1


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_the_same_command_repeats_no_answered_request(write_documents, tmp_path):
    documents, output = write_documents(60), tmp_path / "out"
    with EndpointServer(slow_writer(0.05)) as server:
        flags = ["--backend", "openai", "--base-url", server.base_url, "--model", "m", "--max-concurrency", "2",
                 "--workers", "2", "--documents-per-task", "15"]  # fmt: skip
        process = start(documents, output, *flags)
        while len(server.asked) < 24:
            time.sleep(0.002)
        kill.find_writer(process.pid, "/out.requests/task-").kill()
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1 and b"a worker was killed" in error and not output.exists()
        finish(start(documents, output, *flags))
        payloads = Counter(json.dumps(asked.payload) for asked in server.asked)
        assert len(payloads) == 120 and sum(payloads.values()) <= 120 + 4
        unify([documents], tmp_path / "one", backend="openai", base_url=server.base_url, model="m")
    assert same_bytes(output, tmp_path / "one")
    ledger = read_json(output / "ledger.json")
    assert ledger["requests"] == 120 and ledger["requests_without_reply"] <= 4


@pytest.mark.slow
def test_ctrl_c_ends_in_seconds_and_leaves_no_output(write_documents, tmp_path):
    with EndpointServer(lambda asked: Reply(delay_s=30)) as server:
        process = start(write_documents(3), tmp_path / "out", "--backend", "openai", "--base-url", server.base_url,
                        "--model", "m")  # fmt: skip
        while not server.asked:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=10)
    assert process.returncode == 130 and b"Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_tool_tells_a_stop_by_budget_from_success(write_documents, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("m: {prompt_usd_per_million: 1000, completion_usd_per_million: 3000}\n")
    with EndpointServer() as server:
        process = start(write_documents(20), tmp_path / "out", "--backend", "openai", "--base-url", server.base_url,
                        "--model", "m", "--prices", str(prices), "--budget-usd", "7.5")  # fmt: skip
        _, error = process.communicate(timeout=30)
    assert process.returncode == 3 and b"budget reached" in error
    assert (tmp_path / "out" / "manifest.json").exists()
