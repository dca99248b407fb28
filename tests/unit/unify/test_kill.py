"""kill -9 at random moments: the rerun finishes with the same bytes, and no answered request is asked again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

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
    moments = random.Random(7)

    def handler(asked: Asked) -> Reply:
        reply = echo_writer(asked)
        reply.delay_s = 0.01
        return reply

    with EndpointServer(handler) as server:
        flags = ["--backend", "openai", "--base-url", server.base_url, "--model", "m", "--max-concurrency",
                 str(CONCURRENCY)]  # fmt: skip
        finish(start(documents, tmp_path / "undisturbed", *flags))
        expected = {name: (tmp_path / "undisturbed" / name).read_bytes() for name in FILES}
        server.asked.clear()
        kills = finished = 0
        while kills < KILLS:
            process = start(documents, output, *flags)
            before = len(server.asked)
            # Half of the kills fall into start-up, half between the first request and the end.
            if moments.random() < 0.5:
                while len(server.asked) == before and process.poll() is None:
                    time.sleep(0.005)
                time.sleep(moments.uniform(0, 0.35))
            else:
                time.sleep(moments.uniform(0, 1.0))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            if (output / "manifest.json").exists():
                finished += 1
                assert_equal(output, expected)
                assert_few_repeats(server, kills)
                forget(server, output)
        finish(start(documents, output, *flags))
        assert_equal(output, expected)
        assert_few_repeats(server, kills)
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
    for path in output.parent.glob(f"{output.name}.requests.sqlite*"):
        path.unlink()


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
    assert ledger["requests"] == 60 and ledger["requests_without_reply"] == 0


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
