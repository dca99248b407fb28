"""Requests to end a run after the current step: SIGTERM or SIGUSR1 to a worker, or a file STOP in the run directory.

Invariant: a request seen by one rank stops all ranks at the same step, because the step's reduction carries it.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from megatron_huatuo.storage.run_files import STOP


class StopRequest:
    """Remembers signals and looks for the file STOP."""

    def __init__(self, run_dir: Path, *, polls_files: bool) -> None:
        self._run_dir, self._polls_files = run_dir, polls_files
        self._rank = dist.get_rank()
        self.reason: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = f"signal {signal.Signals(number).name} on rank {self._rank}"

    def requested(self) -> bool:
        """True when this rank knows of a request."""
        if self.reason is None and self._polls_files and (self._run_dir / STOP).exists():
            self.reason = "file STOP"
        return self.reason is not None

    def clear_files(self) -> None:
        """Remove STOP, so that the same command resumes the run."""
        (self._run_dir / STOP).unlink(missing_ok=True)
