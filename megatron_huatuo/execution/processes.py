"""Tasks in processes of this machine.

datatrove's own local executor waits for ever when a worker is killed, so the processes here are ours.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from multiprocessing import get_context
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger as datatrove_logger

from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.log import progress


class ProcessExecutor(LocalPipelineExecutor):
    """Local tasks in processes that are missed when they die. One worker runs in this very process."""

    def __init__(self, name: str, pipeline: list[Any], **options: Any) -> None:
        """name: of the stage, for the progress bar."""
        super().__init__(pipeline, **options)
        self.name = name

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
            futures = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            for future in progress(as_completed(futures), total=len(futures), description=self.name, unit="task"):
                future.result()
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
