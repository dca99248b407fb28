"""A real Slurm of two nodes on this machine, without accounting: its own munge and daemons in a private folder, on free ports.

The nodes are called 127.0.0.2 and 127.0.0.3: names that every Linux machine resolves without an entry in /etc/hosts, so
that MASTER_ADDR is what train.sbatch makes of Slurm's list of nodes. Several clusters can run side by side. Invariant:
`stop` ends all that was started, and all processes of its jobs; nothing outside the folder is changed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.ports import free_ports

NODES = ("127.0.0.2", "127.0.0.3")
# What is called, and the Debian package that has it.
_PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# train.sbatch listens on 20000 + the number of its job: the jobs of a cluster are numbered by ports that were free.
_MOST_JOBS = 50
_HIGHEST_JOB = 65535 - 20_000
# A slurmd that does not answer for SlurmdTimeout is a failed node. KillWait: from SIGTERM to SIGKILL, Slurm's default.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
FirstJobId={first_job}
SlurmdTimeout=4
KillWait=30
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
NodeName=127.0.0.[2-3] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=8 RealMemory=16000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_packages() -> list[str]:
    """Debian packages that this machine lacks for a cluster."""
    return sorted({package for program, package in _PACKAGES.items() if shutil.which(program, path=_PATH) is None})


def wait_until(condition: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
    """Raises: AssertionError with `what` when the condition does not hold in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what()}"
        time.sleep(0.2)


class Cluster:
    """The daemons, and the commands of a user and of an operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MASTER_"))
        }
        self.environment |= {"PATH": _PATH, "SLURM_CONF": str(self.configuration), "OMP_NUM_THREADS": "1"}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Returns when both nodes are idle. Raises: AssertionError with the end of the logs."""
        socket = self.folder / "spool" / NODES[0] / f"{NODES[0]}_{_HIGHEST_JOB}.4294967291"  # as a batch step calls it
        assert len(os.fsencode(socket)) < 108, f"too long for the address of a socket, and no job would start: {socket}"
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        ports = free_ports(3 + _MOST_JOBS)
        self.configuration.write_text(
            _CONFIGURATION.format(folder=self.folder, user=getpass.getuser(), ports=ports, first_job=ports[3] - 20_000),
            encoding="utf-8",
        )
        files = {name: f"{self.folder}/munge.{name}" for name in ("sock", "seed", "pid", "log")}
        self._start("munged", "-F", "--force", f"--key-file={key}", f"--socket={files['sock']}",
                    f"--seed-file={files['seed']}", f"--pid-file={files['pid']}", f"--log-file={files['log']}")  # fmt: skip
        wait_until(lambda: Path(files["sock"]).exists(), 20, lambda: "munge has a socket")
        self._start("slurmctld", "-D")
        for node in NODES:
            self.start_slurmd(node)
        wait_until(lambda: self.node_states() == {"idle"}, 60, self.logs)

    def start_slurmd(self, node: str) -> None:
        """Bring a node up (again)."""
        self._start(f"slurmd.{node}", "-D", "-N", node)

    def fail_node(self, node: str) -> None:
        """As when its power goes: the daemon, its slurmstepd and all that they started end at once, and report nothing."""
        daemon = self._daemons[f"slurmd.{node}"]
        daemon.kill()
        hard_kill([*self.steps(node), *self.processes(node=node)])
        daemon.wait()

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                [name.partition(".")[0], *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """As when the power of all goes: the daemons, then what they have started, without a word to each other."""
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        while left := [*self.steps(), *self.processes()]:
            hard_kill(left)
            time.sleep(0.05)

    def steps(self, node: str = "") -> list[psutil.Process]:
        """Each slurmstepd, by the socket that it listens on: it overwrites its command line and its environment."""
        prefix = f"{self.folder}/spool/{node}"
        found = {socket.pid for socket in psutil.net_connections("unix") if socket.laddr.startswith(prefix)}
        steps = []
        for pid in found - {None}:
            with contextlib.suppress(psutil.NoSuchProcess):
                steps.append(psutil.Process(pid))
        return steps

    def processes(self, *parts: str, node: str | None = None) -> list[psutil.Process]:
        """Processes of this cluster's jobs and daemons whose command line has all `parts`; of one node, if named."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if environment.get("SLURM_CONF") != str(self.configuration) or process.pid == os.getpid():
                    continue
                if node is not None and environment.get("SLURMD_NODENAME") != node:
                    continue
                if all(any(part in word for word in process.cmdline()) for part in parts):
                    found.append(process)
        return found

    def run(self, *command: str, **environment: str) -> str:
        """Output of a Slurm command. Raises: AssertionError when it fails."""
        done = subprocess.run(
            command, env={**self.environment, **environment}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def node_states(self) -> set[str]:
        """Such as {"idle"}; an asterisk is Slurm's word for a node that does not respond."""
        return set(self.run("sinfo", "--noheader", "-N", "--format=%T").split())

    def jobs(self) -> set[str]:
        """Numbers of the jobs that wait or run."""
        return set(self.run("squeue", "--noheader", "--format=%A").split())

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, for five minutes after its end: JobState, Restarts, ExitCode, Reason and so on."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, number: str, timeout_s: float, restarts: int | None = None) -> dict[str, str]:
        """What Slurm knows of a job at its end, or when it has been requeued so often and waits.

        A requeued job would wait two minutes. The operator lets it start in three seconds: at once, its nodes would take
        it for the attempt that they have just been told to end.
        """
        facts: dict[str, str] = {}
        told = {"0"}

        def has_ended() -> bool:
            facts.update(self.job(number))
            if facts["JobState"] == "PENDING" and facts["Reason"] == "BeginTime" and facts["Restarts"] not in told:
                self.run("scontrol", "update", f"JobId={number}", "StartTime=now+3")
                told.add(facts["Restarts"])
            if facts["JobState"] == "PENDING" and facts["Restarts"] == str(restarts) and facts["Restarts"] in told:
                return True
            return facts["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        wait_until(has_ended, timeout_s, lambda: f"{facts}\n{self.logs()}")
        if facts["JobState"] != "PENDING":
            wait_until(lambda: number not in self.jobs(), 60, lambda: f"job {number} leaves the queue")
        return facts

    def logs(self) -> str:
        """The end of what each daemon logged."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that is stopped at the end, whatever happens."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def hard_kill(processes: list[psutil.Process]) -> None:
    """kill -9; there must be something to kill."""
    assert processes, "nothing to kill"
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
