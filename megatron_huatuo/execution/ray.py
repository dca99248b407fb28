"""Tasks on a Ray cluster. The only file that imports ray.

datatrove's Ray executor keeps a task's error to itself, ends as if all were well, and waits for ever for a machine that
the cluster does not have; here errors are raised as they are, and what can never run is refused.
"""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor

from megatron_huatuo.errors import ConfigError, HuatuoError
from megatron_huatuo.execution.processes import be_quiet
from megatron_huatuo.log import progress


class RayExecutor(LocalPipelineExecutor):
    """Tasks as Ray tasks of one CPU each, `workers` at a time; a cluster is started here where none is found.

    All machines must see input and output under the same paths, and have this package installed.
    """

    def __init__(self, name: str, pipeline: list[Any], *, memory_gib: int, **options: Any) -> None:
        """name: of the stage, for the progress bar."""
        super().__init__(pipeline, **options)
        self.name, self.memory_gib = name, memory_gib

    def run(self) -> None:
        """Run all tasks that are not done.

        Raises: ConfigError without ray, or where no machine is large enough; HuatuoError when a worker is killed; what
        a task raises.
        """
        try:
            import ray
        except ImportError as error:
            raise ConfigError("the ray executor needs the package ray: pip install ray.") from error
        ours = not ray.is_initialized()
        if ours:
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        try:
            self._run_on(ray)
        finally:
            if ours:
                ray.shutdown()

    def _run_on(self, ray: Any) -> None:
        memory = self.memory_gib << 30
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(one.get("CPU", 0) >= 1 and one.get("memory", 0) >= memory for one in machines):
            largest = max((one.get("memory", 0) for one in machines), default=0) / 2**30
            raise ConfigError(
                f"no machine of the Ray cluster can run a task: the largest has {largest:.1f} GiB for tasks, need 1 CPU "
                f"and --memory-gib {self.memory_gib}. Lower it, or add machines."
            )
        remote = ray.remote(num_cpus=1, memory=memory, max_retries=0)(_run_task)
        ranks = self.get_incomplete_ranks(range(self.tasks))
        executor = ray.put(self)
        waiting = iter(ranks)
        running: list[Any] = []
        bar = progress(total=len(ranks), description=self.name, unit="task")
        while True:
            free = self.workers - len(running)
            running += [remote.remote(executor, rank) for rank in itertools.islice(waiting, free)]
            if not running:
                break
            finished, running = ray.wait(running)
            try:
                ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, HuatuoError) else error) from None
            except (ray.exceptions.RaySystemError, ray.exceptions.RayError) as error:
                raise HuatuoError(
                    f"a Ray worker died: {str(error).splitlines()[0]} Run the same command again: finished tasks are "
                    "kept; raise --memory-gib if memory is short."
                ) from error
            bar.update(len(finished))
        bar.close()


def _run_task(executor: RayExecutor, rank: int) -> None:
    be_quiet()
    deepcopy(executor)._run_for_rank(rank)  # Ray shares one copy among the tasks of a worker; steps keep counts
