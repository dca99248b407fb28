"""kill -9 for the data stages: the work runs in processes of its own that start at once, and are killed for real."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.forkserver import CONTEXT

ROOT = Path(__file__).parents[2]


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """Run to the end in a process of its own; returns the seconds that it took."""
    started_s = time.monotonic()
    process = CONTEXT.Process(target=function, args=args, kwargs=kwargs)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return time.monotonic() - started_s


def run_and_kill(after_s: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Run, and kill -9 after so long; returns whether it was still running."""
    process = CONTEXT.Process(target=function, args=args, kwargs=kwargs)
    process.start()
    process.join(after_s)
    process.kill()
    process.join(30)
    return process.exitcode == -9


def random_moments(seed: int, duration_s: float) -> Callable[[], float]:
    """Moments between start and a little after the usual end."""
    generator = random.Random(seed)
    return lambda: generator.uniform(0.02, 1.05) * duration_s


def start_tool(name: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A tool as a user starts it; its messages are in `stderr`."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def find_writer(pid: int, pattern: str) -> psutil.Process:
    """The first process, of this one and all below it, that has a file open whose path the pattern fits."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            try:
                if any(re.search(pattern, file.path) for file in process.open_files()):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.002)
    raise AssertionError(f"nobody below process {pid} wrote {pattern}")
