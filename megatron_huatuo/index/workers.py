"""An ordered map over processes that never hangs: a dead worker is an error at once, a dead parent ends its workers.

Invariant: results come in the order of the items, whatever the number of workers. Each worker has a pipe of its own that
nobody else holds, so a process that is killed at any moment, half-way through a message too, is seen as the end of its
pipe; the shared queues of multiprocessing and concurrent.futures can wait for ever there.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from megatron_huatuo.errors import HuatuoError

Item = TypeVar("Item")
Result = TypeVar("Result")

# How far the fastest worker may run ahead of the slowest, in items for each worker: bounds the results kept waiting.
_LEAD = 4
# Items that a worker holds: one that it works on and one that is there when it has finished, so that it never waits.
_HELD = 2
# Chunks come and go by the hundred: memory that the allocator keeps is not fetched from the kernel again (3 % of the time).
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 28)}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yield function(item) for each item, in order, computed by `workers` processes (in this one when it is 1).

    function: importable by name or picklable; a HuatuoError that it raises is raised here. Close the iterator (or use
    `contextlib.closing`) to end the workers early. Memory: a bounded number of items and results.
    Raises: HuatuoError when a worker dies.
    """
    if workers == 1:
        yield from map(function, items)
        return
    crew = [_Worker(function) for _ in range(workers)]
    try:
        yield from _run(crew, enumerate(items))
    finally:
        for worker in crew:
            worker.end()


def _run(crew: list[_Worker], items: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    finished: dict[int, Any] = {}
    due = 0  # number of the item whose result is yielded next
    following = next(items, None)
    while True:
        for held, worker in itertools.product(range(1, _HELD + 1), crew):  # an idle worker comes before a busy one
            if following is not None and len(worker.numbers) < held and following[0] < due + _LEAD * len(crew):
                worker.give(*following)
                following = next(items, None)
        while due in finished:
            yield finished.pop(due)
            due += 1
        busy = [worker for worker in crew if worker.numbers]
        if busy:
            ready = wait([worker.connection for worker in busy])
            finished.update(worker.collect() for worker in busy if worker.connection in ready)
        elif following is None and due not in finished:
            return


class _Worker:
    """One process, its pipe, and the numbers of the items that it holds, in order (none when idle)."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.numbers: deque[int] = deque()
        self.connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**_ALLOCATOR, **os.environ},
                start_new_session=True,  # Ctrl-C is the parent's to handle; its end is theirs
            )
        self._send(function)

    def give(self, number: int, item: Any) -> None:
        self.numbers.append(number)
        self._send(item)

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError as error:
            raise self._died() from error

    def collect(self) -> tuple[int, Any]:
        try:
            result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(result, HuatuoError):
            raise result
        return self.numbers.popleft(), result

    def _died(self) -> HuatuoError:
        code = self._end()
        cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return HuatuoError(
            f"a worker process died ({cause}); it may have run out of memory. Nothing was published: "
            "run the same command again, with fewer --workers if memory is short."
        )

    def end(self) -> None:
        """End the process, at once when it is at work."""
        if self.numbers:
            self._process.kill()
        self.connection.close()
        self._end()

    def _end(self) -> int:
        """Exit code of a process that should be ending; killed when it is not."""
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


# A plain interpreter, not multiprocessing's spawn: that would import the caller's main script (and its torch) again.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from megatron_huatuo.index.workers import serve; serve(int(sys.argv[1]))"
)


def serve(descriptor: int) -> None:
    """Life of a worker: receive a function, then answer items until the parent closes the pipe or dies."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.disable()  # items leave no cycles behind; looking for them takes 1 % of the time
    with Connection(descriptor) as connection:
        received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Reads while the function works: a parent that sends the next item must never wait for the answer to this one.
        threading.Thread(target=_receive_all, args=(connection, received), daemon=True).start()
        function = received.get()
        while function is not _END and (item := received.get()) is not _END:
            try:
                result = function(item)
            except HuatuoError as error:
                result = error
            with contextlib.suppress(OSError):  # the parent is gone; the queue's end says so
                connection.send(result)


def _receive_all(connection: Connection, received: queue.SimpleQueue[Any]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            received.put(connection.recv())
    received.put(_END)


_END = object()
