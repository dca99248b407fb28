"""Run a function on several gloo ranks, forked from one server that has torch and megatron-core loaded already.

A start costs well under a second instead of the 10 s and more of torchrun, which is kept for tests of the launcher.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.forkserver import CONTEXT
from tests.ports import free_port


def _rank_main(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    folder: str,
    port: int | None,
    arguments: tuple[Any, ...],
) -> None:
    import datetime

    import torch
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with open(f"{folder}/rank{rank}.log", "w") as log:  # handlers of logging hold on to the descriptors
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(1)
    try:
        if port is None:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=world_size,
                timeout=datetime.timedelta(seconds=120),
            )
        outcome = (True, function(*arguments))
    except BaseException as error:
        outcome = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    Path(folder, f"rank{rank}.pickle").write_bytes(pickle.dumps(outcome))
    sys.stdout.flush()
    os._exit(0 if outcome[0] else 1)  # a failed rank must not wait for the others in a destructor


class Ranks:
    """Ranks that are running. folder: where their output goes."""

    def __init__(self, processes: list[Any], folder: Path) -> None:
        self._processes, self._folder = processes, folder

    def send(self, rank: int, signal_number: int) -> None:
        """Send a signal to one rank, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._processes[rank].pid, signal_number)

    def wait(self, timeout_s: float, ranks: list[int] | None = None) -> list[int]:
        """Exit codes, negative for signals. Raises: AssertionError when a rank of `ranks` (all) has not ended in time."""
        chosen = range(len(self._processes)) if ranks is None else ranks
        end = time.monotonic() + timeout_s
        for rank in chosen:
            self._processes[rank].join(max(0.0, end - time.monotonic()))
        hanging = [rank for rank in chosen if self._processes[rank].is_alive()]
        assert not hanging, f"ranks {hanging} hang\n{self.output()[-4000:]}"
        return [self._processes[rank].exitcode for rank in chosen]

    def running(self) -> bool:
        """Whether any rank still runs."""
        return any(process.is_alive() for process in self._processes)

    def output(self, rank: int | None = None) -> str:
        """What one rank, or all, have printed."""
        pattern = "rank*.log" if rank is None else f"rank{rank}.log"
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob(pattern)))

    def result(self, rank: int) -> tuple[bool, Any]:
        """(True, what the function returned) or (False, its traceback)."""
        path = self._folder / f"rank{rank}.pickle"
        return pickle.loads(path.read_bytes()) if path.is_file() else (False, "no result")

    def kill(self) -> None:
        """End what still runs."""
        for process in self._processes:
            process.kill()
            process.join()


@contextlib.contextmanager
def started_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, groups: bool = False
) -> Iterator[Ranks]:
    """`function(*arguments)` on `world_size` ranks, for tests that disturb them; what still runs at the end is killed.

    groups: start torch.distributed before; without, ranks have the environment that a launcher gives them.
    """
    port = None if groups else free_port()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(target=_rank_main, args=(function, rank, world_size, folder, port, arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        ranks = Ranks(processes, Path(folder))
        try:
            yield ranks
        finally:
            ranks.kill()


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 240) -> list[Any]:
    """Call `function(*arguments)` on `world_size` ranks with torch.distributed started; returns the ranks' results.

    Raises: AssertionError with the first failing rank's traceback, or when the ranks are not done in time.
    """
    with started_ranks(world_size, function, *arguments, groups=True) as ranks:
        ranks.wait(timeout_s)
        outcomes = [ranks.result(rank) for rank in range(world_size)]
        for rank, (succeeded, result) in enumerate(outcomes):
            assert succeeded, f"rank {rank} failed: {result}\n{ranks.output()[-4000:]}"
        return [result for _, result in outcomes]
