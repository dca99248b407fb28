"""A forked writer gives its result or its failure, in bounded time, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_huatuo.checkpoint import writer_process
from megatron_huatuo.checkpoint.writer_process import WriterError, WriterProcess


def test_it_sees_the_values_of_its_start_and_gives_back_its_result() -> None:
    values = list(range(200_000))
    writer = WriterProcess(lambda: (os.getpid(), sum(values)), time_limit_s=30)
    values.clear()
    pid, total = writer.result()
    assert pid != os.getpid() and total == sum(range(200_000))


def test_is_done_does_not_wait() -> None:
    writer = WriterProcess(lambda: time.sleep(0.5), time_limit_s=30)
    assert not writer.is_done()
    assert writer.result() is None
    assert writer.is_done()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the writer ended with signal 9"),
        (lambda: os._exit(3), "the writer ended with exit code 3"),
        (lambda: lambda: 0, "the writer ended with exit code 1"),  # a result that cannot be passed on
    ],
)
def test_a_failure_comes_back(action, message: str) -> None:
    with pytest.raises(WriterError, match=message):
        WriterProcess(action, time_limit_s=30).result()


def test_it_is_stopped_after_its_limit() -> None:
    with pytest.raises(WriterError, match=r"stopped after its limit of 0\.2 s"):
        WriterProcess(lambda: time.sleep(600), time_limit_s=0.2).result()


def test_it_is_given_up_when_not_even_a_kill_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs in the kernel; here, the kill does not arrive."""
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(writer_process, "_GRACE_S", 0.3)
    writer = WriterProcess(lambda: time.sleep(600), time_limit_s=0.2)
    try:
        with pytest.raises(WriterError, match=r"the writer does not end, 0\.3 s after it was killed: its disk hangs"):
            writer.result()
        assert writer.is_done()
    finally:
        kill(writer._pid, signal.SIGKILL)
        os.waitpid(writer._pid, 0)


@pytest.mark.slow
def test_it_writes_what_more_than_one_thread_made() -> None:
    """A clone uses OpenMP, whose threads a fork does not have."""
    program = (
        "import torch\n"
        "from megatron_huatuo.checkpoint.writer_process import WriterProcess\n"
        "assert torch.get_num_threads() == 2\n"
        "made = torch.ones(1 << 20) * 2\n"
        "print(WriterProcess(lambda: float(made.clone().sum()), 20).result())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == f"{2.0 * (1 << 20)}\n", done.stderr


def test_requests_to_stop_do_not_reach_it() -> None:
    writer = WriterProcess(lambda: time.sleep(1) or "done", time_limit_s=30)
    time.sleep(0.2)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(writer._pid, number)
    assert writer.result() == "done"


@pytest.mark.slow
def test_it_dies_with_its_parent() -> None:
    program = (
        "import os, time\n"
        "from megatron_huatuo.checkpoint.writer_process import WriterProcess\n"
        "writer = WriterProcess(lambda: time.sleep(600), 600)\n"
        "print(writer._pid, flush=True)\n"
        "time.sleep(0.3)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid, end = int(parent.stdout), time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < end, f"writer {pid} outlives its parent"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has waited for."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
