"""A forked process that writes a rank's share of a checkpoint while training goes on.

Invariant: the parent never waits for it without a limit. The fork sees the tensors as they were; what the parent changes
meanwhile is copied page by page (at most once the share's size in extra memory). It dies with its parent, and requests to
stop go to the parent alone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch

_PR_SET_PDEATHSIG = 1
_GRACE_S = 10.0  # after SIGKILL; a process that hangs in the kernel (a lost file server) does not end by it
_libc = ctypes.CDLL(None)


class WriterError(Exception):
    """The process failed, died, or took too long."""


class WriterProcess:
    """Calls `action()` in a fork of this process; its result, or its failure, comes back."""

    def __init__(self, action: Callable[[], Any], time_limit_s: float) -> None:
        self._result = tempfile.TemporaryFile()  # noqa: SIM115 (closed by result())
        self._time_limit_s, self._deadline = time_limit_s, time.monotonic() + time_limit_s
        self._status: int | None = None
        self._overdue = self._given_up = False
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._run(action, parent)

    def _run(self, action: Callable[[], Any], parent: int) -> NoReturn:
        """The child: no garbage collection (it would touch the parent's GPU tensors), no exit handlers."""
        code = 1
        try:
            gc.disable()
            torch.set_num_threads(1)  # a fork has none of OpenMP's threads, and an operation that asks for them hangs
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            if os.getppid() == parent:
                outcome: tuple[str | None, Any]
                try:
                    outcome = (None, action())
                except Exception as error:
                    outcome = (f"{type(error).__name__}: {error}", None)
                pickle.dump(outcome, self._result)
                self._result.flush()
                code = 0
        finally:
            os._exit(code)

    def is_done(self) -> bool:
        """Whether it has ended, also by being killed for taking too long, or is given up because not even that helps."""
        if self._status is None:
            now = time.monotonic()
            if now > self._deadline and not self._overdue:
                self._overdue = True
                os.kill(self._pid, signal.SIGKILL)
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
            self._given_up = not pid and now > self._deadline + _GRACE_S
        return self._status is not None or self._given_up

    def result(self) -> Any:
        """Wait for the end; what `action` returned. Raises: WriterError."""
        while not self.is_done():
            time.sleep(0.02)
        with self._result:
            if self._given_up:
                raise WriterError(f"the writer does not end, {_GRACE_S:g} s after it was killed: its disk hangs")
            if self._overdue:
                raise WriterError(f"the writer was stopped after its limit of {self._time_limit_s:g} s")
            if self._status != 0:
                code = os.waitstatus_to_exitcode(self._status or 0)
                raise WriterError(f"the writer ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}")
            self._result.seek(0)
            failure, value = pickle.load(self._result)
        if failure is not None:
            raise WriterError(failure)
        return value
