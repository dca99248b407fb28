"""Run a function on several gloo ranks, forked from one server that has torch and megatron-core loaded already.

A start costs well under a second instead of the 10 s and more of torchrun, which is kept for tests of the launcher.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.distributed.preload"])


def _rank_main(
    function: Callable[..., Any], rank: int, world_size: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    import datetime

    import torch
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    sys.stdout = sys.stderr = open(f"{folder}/rank{rank}.log", "w", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=120),
        )
        result: Any = function(*arguments)
        outcome = (True, result)
    except BaseException as error:
        outcome = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    Path(folder, f"rank{rank}.pickle").write_bytes(pickle.dumps(outcome))
    sys.stdout.flush()
    os._exit(0 if outcome[0] else 1)  # a failed rank must not wait for the others in a destructor


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 240) -> list[Any]:
    """Call `function(*arguments)` on `world_size` ranks with torch.distributed started; returns the ranks' results.

    Raises: AssertionError with the first failing rank's traceback, or when the ranks are not done in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _CONTEXT.Process(target=_rank_main, args=(function, rank, world_size, folder, arguments))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout_s)
        hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
        outcomes = []
        for rank in range(world_size):
            path = Path(folder, f"rank{rank}.pickle")
            outcomes.append(pickle.loads(path.read_bytes()) if path.is_file() else (False, "no result"))
        logs = "\n".join(path.read_text() for path in sorted(Path(folder).glob("rank*.log")))
        assert not hanging, f"ranks {hanging} hang\n{logs[-4000:]}"
        for rank, (succeeded, result) in enumerate(outcomes):
            assert succeeded, f"rank {rank} failed: {result}\n{logs[-4000:]}"
        return [result for _, result in outcomes]
