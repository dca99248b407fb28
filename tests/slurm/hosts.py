"""Several hosts on this machine: network, name and mount namespaces of their own, joined by a switch in one more.

Traffic stays inside the namespaces, which end with the processes that hold them; nothing of the machine is changed. A
host has its own loopback, address (10.77.0.1 and so on), host name (host0, …) and /etc/hosts, and shares the files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

_HOLD = ["unshare", "--net", "--uts", "--mount", "sh", "-c", "echo ready; exec cat"]


def obstacle() -> str | None:
    """Why this machine gives no such hosts, or None."""
    trial = ["unshare", "--net", "--uts", "--mount", "sh", "-c", "hostname trial && ip link add br0 type bridge"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unshare: {error}"
    return None if done.returncode == 0 else done.stderr.strip() or "unshare failed"


class Host:
    """A set of namespaces, held by a process that ends with this one."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self._holder = subprocess.Popen(_HOLD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self._started: list[subprocess.Popen[str]] = []
        self.run("hostname", name)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> str:
        """Process that holds the namespaces."""
        return str(self._holder.pid)

    def _inside(self, *command: str | Path) -> list[str | Path]:
        return ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", f"--wd={os.getcwd()}", *command]

    def run(self, *command: str | Path) -> str:
        """Output of a command. Raises: AssertionError when it fails."""
        done = subprocess.run(self._inside(*command), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def start(self, *command: str | Path, log: Path, **environment: str) -> subprocess.Popen[str]:
        """A process of its own group; what it prints is in `log`. `stop` ends it."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MASTER_"))}
        with open(log, "ab") as output:
            process = subprocess.Popen(
                self._inside(*command),
                env={**kept, "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def write_file(self, path: str, content: str, folder: Path) -> None:
        """Give this host its own content of a file, by a mount."""
        own = folder / f"{self.name}{path.replace('/', '_')}"
        own.write_text(content)
        self.run("mount", "--bind", own, path)

    def processes(self) -> list[psutil.Process]:
        """All that runs on this host but its holder."""
        own = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if process.pid != self._holder.pid and os.stat(f"/proc/{process.pid}/ns/net").st_ino == own:
                    found.append(process)
        return found

    def end_processes(self) -> None:
        """kill -9 of everything that runs on this host."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        for started in self._started:
            started.wait(10)
        self._started.clear()

    def stop(self) -> None:
        """End everything on this host, and the host."""
        self.end_processes()
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait(10)


class Network:
    """Hosts on one switch. Cables can be slow, and can be pulled."""

    def __init__(self, number: int, folder: Path) -> None:
        self._folder = folder
        self.hosts: list[Host] = []
        self._switch = Host("switch", "")
        try:
            self._switch.run("ip", "link", "add", "br0", "type", "bridge")
            self._switch.run("ip", "link", "set", "br0", "up")
            for index in range(number):
                self.hosts.append(Host(f"host{index}", f"10.77.0.{index + 1}"))
                self._connect(index)
            names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
            for host in self.hosts:
                host.write_file("/etc/hosts", f"127.0.0.1 localhost\n{names}", folder)
                host.write_file("/etc/resolv.conf", "", folder)
        except BaseException:
            self.stop()
            raise

    def _connect(self, index: int) -> None:
        host, port = self.hosts[index], f"port{index}"
        host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", port)
        host.run("ip", "link", "set", port, "netns", self._switch.pid)
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        self._switch.run("ip", "link", "set", port, "master", "br0", "up")

    def slow_down(self, index: int, megabit_per_s: int) -> None:
        """Limit what a host sends and receives."""
        limit = ("root", "tbf", "rate", f"{megabit_per_s}mbit", "burst", "256kb", "latency", "100ms")
        self.hosts[index].run("tc", "qdisc", "add", "dev", "eth0", *limit)
        self._switch.run("tc", "qdisc", "add", "dev", f"port{index}", *limit)

    def restore_speed(self, index: int) -> None:
        """Undo `slow_down`."""
        self.hosts[index].run("tc", "qdisc", "del", "dev", "eth0", "root")
        self._switch.run("tc", "qdisc", "del", "dev", f"port{index}", "root")

    def pull_cable(self, index: int) -> None:
        """No packet passes, and nobody is told: not even that the connection is closed."""
        self._switch.run("ip", "link", "set", f"port{index}", "nomaster")

    def plug_in(self, index: int) -> None:
        """Undo `pull_cable`."""
        self._switch.run("ip", "link", "set", f"port{index}", "master", "br0")

    def stop(self) -> None:
        """End all hosts, and the switch."""
        for host in [*self.hosts, self._switch]:
            host.stop()


@contextlib.contextmanager
def network(number: int, folder: Path) -> Iterator[Network]:
    """Hosts that end with the block, whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    net = Network(number, folder)
    try:
        yield net
    finally:
        net.stop()
