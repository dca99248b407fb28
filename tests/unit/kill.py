"""kill -9 for the data tools: the work runs in processes of its own that start at once, and are killed for real."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from tests.forkserver import CONTEXT


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
