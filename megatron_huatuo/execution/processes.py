"""Tasks in processes of this machine.

datatrove's own local executor waits for ever when a worker is killed, so the processes here are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from multiprocessing import get_context
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger as datatrove_logger

from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.log import progress

_LOOK_EVERY_S = 10.0


class ProcessExecutor(LocalPipelineExecutor):
    """Local tasks in processes that are missed when they die. One worker runs in this very process."""

    def __init__(
        self, name: str, pipeline: list[Any], figures: Callable[[], dict[str, str]] | None = None, **options: Any
    ) -> None:
        """name: of the stage, for the progress bar over several workers; figures: what else it shows."""
        super().__init__(pipeline, **options)
        self.name, self.figures = name, figures or dict

    def run(self) -> None:
        """Run all tasks that are not done. Raises HuatuoError when a worker is killed."""
        ranks = self.get_incomplete_ranks(range(self.tasks))
        if self.workers == 1 or len(ranks) <= 1:
            be_quiet()
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)  # steps keep counts: every task starts with fresh ones
            return
        self._run_in_processes(ranks)

    def _run_in_processes(self, ranks: list[int]) -> None:
        workers = min(self.workers, len(ranks))
        context = get_context("forkserver")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=be_quiet)
        try:
            waiting = {pool.submit(self._run_for_rank, rank) for rank in ranks}
            with progress(total=len(waiting), description=self.name, unit="task") as bar:
                while waiting:
                    done, waiting = wait(waiting, _LOOK_EVERY_S, FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    bar.set_postfix(self.figures(), refresh=not done)
                    if done:
                        bar.update(len(done))
        except BrokenProcessPool as error:
            raise HuatuoError(
                "a worker was killed (out of memory?). Run the same command again: finished tasks are kept; "
                "try fewer --workers."
            ) from error
        except BaseException:
            # An error or Ctrl-C must not wait for the other workers: their tasks are done again by the next run.
            for process in list(pool._processes.values()):
                process.kill()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def be_quiet() -> None:
    """datatrove prints every task's steps and tracebacks; here errors reach the user as one line."""
    datatrove_logger.disable("datatrove")
