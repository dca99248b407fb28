"""kill -9 at random moments: the rerun finishes with the same bytes, and no answered request is asked again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from megatron_huatuo.unify import unify
from tests.unit import kill
from tests.unit.unify.endpoint_server import Asked, EndpointServer, Reply, echo_writer

TOOL = Path(__file__).parents[3] / "tools" / "unify_corpus.py"
FILES = ("conversations.jsonl", "rejected.jsonl", "report.json")
KILLS = 20
CONCURRENCY = 4


def start(documents: Path, output: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(TOOL), "--input", str(documents), "--output", str(output), *flags]
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error.decode()


def test_killed_at_any_moment_it_repeats_no_answered_request_and_ends_with_the_same_bytes(write_documents, tmp_path):
    documents, output = write_documents(60), tmp_path / "out"

    def handler(asked: Asked) -> Reply:
        reply = echo_writer(asked)
        reply.delay_s = 0.01
        return reply

    with EndpointServer(handler) as server:
        settings = {"backend": "openai", "base_url": server.base_url, "model": "m", "max_concurrency": CONCURRENCY}
        undisturbed = tmp_path / "undisturbed"
        kill.run(unify, [documents], undisturbed, **settings)  # the first one also starts the fork server
        forget(server, undisturbed)
        duration_s = kill.run(unify, [documents], undisturbed, **settings)
        expected = {name: (undisturbed / name).read_bytes() for name in FILES}
        server.asked.clear()
        next_moment = kill.random_moments(7, duration_s)
        kills = kills_of_this_output = 0
        while kills < KILLS:
            killed = kill.run_and_kill(next_moment() / 2, unify, [documents], output, **settings)
            kills, kills_of_this_output = kills + killed, kills_of_this_output + killed
            if (output / "manifest.json").exists():
                assert_equal(output, expected)
                assert_few_repeats(server, kills_of_this_output)
                forget(server, output)
                kills_of_this_output = 0
        kill.run(unify, [documents], output, **settings)
        assert_equal(output, expected)
        assert_few_repeats(server, kills_of_this_output)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def assert_equal(output: Path, expected: dict[str, bytes]) -> None:
    for name in FILES:
        assert (output / name).read_bytes() == expected[name], name


def assert_few_repeats(server: EndpointServer, kills: int) -> None:
    """Only what was in flight at a kill may be asked twice."""
    repeats = sum(count - 1 for count in Counter(json.dumps(asked.payload) for asked in server.asked).values())
    assert repeats <= CONCURRENCY * kills


def forget(server: EndpointServer, output: Path) -> None:
    server.asked.clear()
    shutil.rmtree(output)
    shutil.rmtree(output.with_name(f"{output.name}.requests"))


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


def test_the_tool_tells_a_stop_by_budget_from_success(write_documents, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("m: {prompt_usd_per_million: 1000, completion_usd_per_million: 3000}\n")
    with EndpointServer() as server:
        process = start(write_documents(20), tmp_path / "out", "--backend", "openai", "--base-url", server.base_url,
                        "--model", "m", "--prices", str(prices), "--budget-usd", "7.5")  # fmt: skip
        _, error = process.communicate(timeout=30)
    assert process.returncode == 3 and b"budget reached" in error
    assert (tmp_path / "out" / "manifest.json").exists()
