"""Hosts with addresses of their own: where they meet, what is slow, what is wrong with one, and a cable that is pulled."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import wait_until
from tests.slurm.conftest import ROOT
from tests.slurm.hosts import Host, Network, network, obstacle

pytestmark = pytest.mark.slurm

LAUNCH = ROOT / "examples" / "launch_node.sh"


@pytest.fixture(scope="module")
def three_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Hosts that are as they should be; a test that spoils one makes its own."""
    if problem := obstacle():
        pytest.skip(f"hosts need root and network namespaces: {problem}")
    with network(3, tmp_path_factory.mktemp("network")) as net:
        yield net


def launch(
    hosts: list[Host],
    folder: Path,
    *arguments: str | Path,
    by_host: dict[str, dict[str, str]] | None = None,
    **more: str,
) -> list[subprocess.Popen[str]]:
    """launch_node.sh on every host, with one rank each; each host prints to `folder`/HOST.log."""
    folder.mkdir(exist_ok=True)
    shared = {"NNODES": str(len(hosts)), "MASTER_ADDR": hosts[0].name, "GPUS_PER_NODE": "1", "PYTHON": sys.executable}
    return [
        host.start(
            LAUNCH,
            *arguments,
            log=folder / f"{host.name}.log",
            **{**shared, "NODE_RANK": str(rank), **more, **(by_host or {}).get(host.name, {})},
        )
        for rank, host in enumerate(hosts)
    ]


def finish(processes: list[subprocess.Popen[str]], folder: Path, timeout_s: float = 240) -> str:
    """What all hosts printed; they must end."""
    end = time.monotonic() + timeout_s
    try:
        for process in processes:
            process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        pytest.fail(f"not within {timeout_s:.0f} s\n{printed(folder)[-5000:]}")
    return printed(folder)


def printed(folder: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(folder.glob("*.log")))


def finding(text: str, name: str) -> str:
    """The line of check_cluster about `name`; rank 0 prints it, whichever host that is."""
    [line] = [line for line in text.splitlines() if f"  {name}  " in line]
    return line


def test_a_slow_link_is_found_and_named(three_hosts: Network, tmp_path: Path) -> None:
    three_hosts.slow_down(2, 100)
    try:
        flags = ("--device", "cpu", "--directory", tmp_path, "--message-mib", "1")
        processes = launch(three_hosts.hosts, tmp_path / "log", "check", *flags)
        text = finish(processes, tmp_path / "log")
    finally:
        three_hosts.restore_speed(2)
    assert [process.returncode for process in processes] == [0, 0, 0], text
    assert "3 ranks on 3 nodes, 1 each" in finding(text, "ranks")
    assert finding(text, "links").partition("at less than half of the usual: ")[2] == "host2"


def test_a_master_that_one_host_cannot_resolve_is_one_sentence_there(three_hosts: Network, tmp_path: Path) -> None:
    first, other = three_hosts.hosts[:2]
    first.write_file("/etc/hosts", f"127.0.0.1 localhost\n{first.address} head\n", tmp_path)
    try:
        waiting, refused = launch([first, other], tmp_path / "log", "check", MASTER_ADDR="head")
        assert refused.wait(60) == 2
        [line] = (tmp_path / "log" / "host1.log").read_text().splitlines()
        assert line.startswith("error: host1 cannot resolve MASTER_ADDR: got 'head'")
        assert waiting.poll() is None, "node 0 waits for the others, as for one that is late"
    finally:
        first.run("umount", "/etc/hosts")
        first.end_processes()


def test_a_port_that_is_taken_is_one_sentence_on_node_0(three_hosts: Network, tmp_path: Path) -> None:
    first = three_hosts.hosts[0]
    taker = "import socket, time; taken = socket.create_server(('', 29555)); print('taken', flush=True); time.sleep(60)"
    first.start(sys.executable, "-c", taker, log=tmp_path / "taker")
    while "taken" not in (tmp_path / "taker").read_text():
        time.sleep(0.05)
    [refused] = launch([first], tmp_path / "log", "check", MASTER_PORT="29555", NNODES="2")
    assert refused.wait(60) == 2
    [line] = (tmp_path / "log" / "host0.log").read_text().splitlines()
    assert line.startswith("error: cannot listen on MASTER_PORT of host0: got 29555")
    first.end_processes()


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
/* The wall clock goes two minutes before the others'. */
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += 120;
    return code;
}
"""


def test_clock_version_and_folder_of_one_host_are_named(tmp_path: Path) -> None:
    """A preloaded clock, the metadata of another NumPy, and a folder that another file system hides."""
    if problem := obstacle():
        pytest.skip(f"hosts need root and network namespaces: {problem}")
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c"], check=True)
    metadata = tmp_path / "other" / "numpy-1.26.4.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.4\n")
    shared = tmp_path / "shared"
    shared.mkdir()
    spoiled = {"LD_PRELOAD": str(tmp_path / "clock.so"), "PYTHONPATH": str(tmp_path / "other")}
    with network(2, tmp_path / "network") as net:
        net.hosts[1].run("mount", "-t", "tmpfs", "none", shared)
        flags = ("--device", "cpu", "--directory", shared, "--message-mib", "1", "--wait-s", "2")
        processes = launch(net.hosts, tmp_path / "log", "check", *flags, by_host={"host1": spoiled})
        text = finish(processes, tmp_path / "log")
    assert all(process.returncode == 1 for process in processes)
    assert "NOT READY: versions, clocks, shared files" in text
    assert "numpy: " in finding(text, "versions") and "1.26.4 on ranks" in finding(text, "versions")
    assert "s off (±" in finding(text, "clocks") and "120." in finding(text, "clocks").replace("119.9", "120.")
    assert f"in {shared} after 2 s: not shared" in finding(text, "shared files")


TIMEOUT_S = 20


def train_flags(run_dir: Path, blend: Path) -> list[str | Path]:
    """Sixty steps of the demo's model, saved every twenty."""
    flags = ["--training.train_iters", "60", "--checkpoint.save_interval", "20", "--logging.log_interval", "1"]
    flags += ["--runtime.device", "cpu"]
    return [ROOT / "examples" / "toy_cpu" / "train.yaml", "--run_dir", run_dir, "--data.blend", blend, *flags]


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["lm_loss"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


def ranks(hosts: list[Host]) -> list[psutil.Process]:
    """Processes of tools/train.py that torchrun started, on all these hosts."""
    found = []
    for process in (process for host in hosts for process in host.processes()):
        with contextlib.suppress(psutil.Error):
            if "LOCAL_RANK" in process.environ() and any("train.py" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_a_pulled_cable_stops_all_ranks_in_time_and_the_run_goes_on_when_it_is_back(
    three_hosts: Network, long_blend: Path, tmp_path: Path
) -> None:
    """No packet says that the other host is gone. torchrun starts the ranks again once the hosts reach each other."""
    hosts = three_hosts.hosts[:2]
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    text = finish(launch(hosts, tmp_path / "log", *train_flags(undisturbed, long_blend)), tmp_path / "log")
    assert len(losses(undisturbed)) == 60, text
    [start] = (undisturbed / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["hosts"] == {"host0": 1, "host1": 1}

    limit = ("--runtime.distributed_timeout_minutes", str(TIMEOUT_S / 60))
    processes = launch(hosts, tmp_path / "log2", *train_flags(run, long_blend), *limit)
    log = run / "log.jsonl"
    wait_until(lambda: log.exists() and '"iteration": 25,' in log.read_text(), 180, lambda: printed(tmp_path / "log2"))
    assert len(ranks(hosts)) == 2
    three_hosts.pull_cable(1)
    try:
        wait_until(lambda: not ranks(hosts), TIMEOUT_S + 45, lambda: str(ranks(hosts)))
    finally:
        three_hosts.plug_in(1)
    text = finish(processes, tmp_path / "log2")
    assert [process.returncode for process in processes] == [0, 0], text[-5000:]
    assert "waits in step" in text and "resuming from" in text
    assert losses(run) == losses(undisturbed)


def test_training_in_a_folder_that_one_host_does_not_share_is_one_sentence(long_blend: Path, tmp_path: Path) -> None:
    if problem := obstacle():
        pytest.skip(f"hosts need root and network namespaces: {problem}")
    run = tmp_path / "run"
    run.mkdir()
    with network(2, tmp_path / "network") as net:
        net.hosts[1].run("mount", "-t", "tmpfs", "none", run)
        flags = train_flags(run, long_blend)
        processes = launch(net.hosts, tmp_path / "log", *flags, MAX_RESTARTS="0")
        text = finish(processes, tmp_path / "log")
    assert all(process.returncode == 1 for process in processes), text
    assert re.search(r"error: run directory is not shared: rank \d on host\d \(1 ranks in all\) does not see", text)
    assert not (run / "checkpoints").exists()
