"""Fair timing: candidates interleaved, medians of wall and CPU time, and no ratio when a core was taken away.

Invariant: every figure is a record that says what was run, against whom, how often, where and with which versions.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Below this share of CPU to wall time somebody else had the cores, and wall times say nothing.
_MIN_CPU_SHARE = 0.9


@dataclass(frozen=True)
class Timing:
    """Seconds of one run, by the clock and on the processors (this process and its finished children)."""

    wall_s: float
    cpu_s: float


def _cpu_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def interleave(
    candidates: Mapping[str, Callable[[], object]], repeats: int = 5, *, warm_up: bool = True
) -> dict[str, list[Timing]]:
    """Run the candidates in turn, A B A B …, after one unmeasured round; returns `repeats` timings of each."""
    timings: dict[str, list[Timing]] = {name: [] for name in candidates}
    for repeat in range(repeats + warm_up):
        for name, candidate in candidates.items():
            cpu_s, started = _cpu_s(), time.perf_counter()
            candidate()
            wall_s = time.perf_counter() - started
            if repeat >= warm_up:
                timings[name].append(Timing(wall_s, _cpu_s() - cpu_s))
    return timings


def rate_record(
    name: str,
    *,
    work: float,
    unit: str,
    ours: Sequence[Timing],
    peer: Sequence[Timing],
    peer_name: str,
    threads: int = 1,
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """One benchmark record: rates of `work` a second, median over the runs, larger is better.

    threads: cores that both keep busy. ratio is None when either had less than 0.9 of them: measure again on a quiet
    machine; cpu_ratio, work for each CPU second of ours over the peer's, is then what can still be said.
    """
    quiet = all(_cpu_share(runs, threads) >= _MIN_CPU_SHARE for runs in (ours, peer))
    ours_rate, peer_rate = (work / _median(runs, "wall_s") for runs in (ours, peer))
    return {
        "name": name,
        "ours": ours_rate,
        "peer": peer_rate,
        "peer_name": peer_name,
        "ratio": ours_rate / peer_rate if quiet else None,
        "cpu_ratio": _median(peer, "cpu_s") / _median(ours, "cpu_s"),
        "unit": unit,
        "runs": {"ours": [vars(run) for run in ours], "peer": [vars(run) for run in peer], "threads": threads},
        **surroundings(packages),
    }


def peak_mib(code: str, *arguments: str) -> float:
    """Peak resident memory of a Python process of its own that runs `code`, which finds the arguments in sys.argv[1:].

    Not by getrusage, which keeps the peak of the parent across fork and exec.
    """
    code += "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1]) / 1024


def surroundings(packages: Sequence[str] = ()) -> dict[str, Any]:
    """{machine, versions, command} of a record."""
    versions = {"python": platform.python_version()}
    versions.update({package: importlib.metadata.version(package) for package in packages})
    return {"machine": machine(), "versions": versions, "command": " ".join(sys.argv)}


def machine() -> str:
    """Processor, cores that this process may use, and memory, in words."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB"


def _median(runs: Sequence[Timing], field: str) -> float:
    return statistics.median(getattr(run, field) for run in runs)


def _cpu_share(runs: Sequence[Timing], threads: int) -> float:
    return _median(runs, "cpu_s") / (_median(runs, "wall_s") * threads)
