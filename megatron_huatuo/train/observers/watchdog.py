"""Notices a step that does not end: shows where every thread of this rank stands, then ends the rank.

A collective that waits for a lost rank fails after `runtime.distributed_timeout_minutes` and ends its rank; the stacks are
shown a little before, because a launcher kills all ranks as soon as one has ended. A rank that hangs outside of any
collective is ended by the watchdog itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

_SHOW_AT = 0.8
_GRACE_S = 15.0


class Watchdog:
    """Watches one rank's loop from a thread. timeout_s: after which a collective fails."""

    def __init__(self, rank: int, timeout_s: float) -> None:
        self._rank, self._timeout_s = rank, timeout_s
        self._doing: str | None = None
        self._since = 0.0
        self._may_end = self._shown = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watching(self, doing: str, *, may_end: bool = True) -> Iterator[None]:
        """Watch a block. may_end: end the rank when it hangs; without, only show where it stands (a slow save)."""
        self._doing, self._may_end, self._shown, self._since = doing, may_end, False, time.monotonic()
        try:
            yield
        finally:
            self._doing = None

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        pause_s = min(1.0, self._timeout_s / 20)
        woken = time.monotonic()
        while not self._closed.wait(pause_s):
            now = time.monotonic()
            if now - woken > pause_s + 5.0:  # this very process was stopped (a suspended job): that is no hang
                self._since += now - woken
            woken = now
            doing, waited_s = self._doing, now - self._since
            if doing is None:
                continue
            if waited_s > _SHOW_AT * self._timeout_s and not self._shown:
                self._shown = True
                self._show(doing, waited_s)
            if waited_s > self._timeout_s + _GRACE_S and self._may_end:
                self._say(f"rank {self._rank} ends itself: {doing} has not ended after {waited_s:.0f} s")
                os._exit(1)

    def _show(self, doing: str, waited_s: float) -> None:
        self._say(f"rank {self._rank} waits in {doing} since {waited_s:.0f} s (time-out {self._timeout_s:.0f} s):")
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
