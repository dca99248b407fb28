"""Tasks as an array of Slurm jobs; the script and the record of finished tasks are datatrove's.

Invariant: a task that waits or runs is not submitted a second time. Works without Slurm's accounting: only sbatch and
squeue are called.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor

from megatron_huatuo.errors import ConfigError, HuatuoError
from megatron_huatuo.execution.processes import be_quiet
from megatron_huatuo.log import get_logger

_JOB_NAME = "slurm_job_id"


class SlurmExecutor(SlurmPipelineExecutor):
    """Tasks of one CPU each, `workers` at a time, submitted and not waited for.

    Nodes must see input, output and this Python under the same paths.
    """

    def __init__(
        self, name: str, pipeline: list[Any], *, time: str, partition: str, memory_gib: int, **options: Any
    ) -> None:
        """name: of the stage, which its jobs have too."""
        be_quiet()
        path = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        super().__init__(
            pipeline,
            **options,
            time=time,
            partition=partition,
            mem_per_cpu_gb=memory_gib,
            job_name=name,
            qos="",  # datatrove's "normal" is not a quality of service of every cluster
            env_command=f"export {path} PYTHONPATH={shlex.quote(os.environ.get('PYTHONPATH', ''))}",
        )

    def run(self) -> None:
        """Submit the tasks that are not done, unless those of an earlier call still wait or run.

        Raises: ConfigError without Slurm's commands; HuatuoError when Slurm refuses.
        """
        if "SLURM_ARRAY_TASK_ID" in os.environ:  # a task
            super().run()
            return
        missing = len(self.get_incomplete_ranks(range(self.tasks)))
        if missing == 0:
            return
        noted = Path(self.logging_dir.resolve_paths(_JOB_NAME))
        earlier = noted.read_text().strip() if noted.exists() else None
        logger = get_logger(__name__)
        try:
            if earlier is not None:
                if unfinished := _in_queue(earlier):
                    logger.info("%d tasks of Slurm job %s still wait or run: nothing is submitted", unfinished, earlier)
                    return
                logger.warning(
                    "%d of %d tasks did not finish in Slurm job %s and are submitted again; what they said: %s",
                    *(missing, self.tasks, earlier, self.slurm_logs_folder),
                )
            super().run()
        except FileNotFoundError as error:
            if error.filename not in ("sbatch", "squeue"):
                raise
            raise ConfigError(
                f"the slurm executor needs {error.filename}: got no such program on PATH. Run on a machine that submits "
                "jobs, or use --executor local."
            ) from error
        except subprocess.CalledProcessError as error:
            raise HuatuoError(
                f"Slurm refused the tasks: got exit code {error.returncode} of sbatch, which says why above. Check "
                f"--slurm-partition ({self.partition}), --slurm-time ({self.time}) and --memory-gib ({self.mem_per_cpu_gb})."
            ) from None
        noted.write_text(f"{self.job_id}\n")
        logger.info("%d tasks are Slurm job %s", missing, self.job_id)

    def launch_merge_stats(self) -> None:
        """No job of its own: nobody reads the sums, and after a failed task it would stay in the queue for ever."""

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        """datatrove's script, for folders whose names need quotes."""
        pickled = self.logging_dir.resolve_paths("executor.pik")
        quoted = {key: f'"{value}"' if " " in str(value) else value for key, value in sbatch_args.items()}
        script: str = super().get_launch_file_contents(quoted, run_script.replace(pickled, shlex.quote(pickled)))
        return script


def _in_queue(job: str) -> int:
    """Tasks of a job that wait or run. Slurm forgets jobs, and then says that the number is not valid."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={job}"]
    return len(subprocess.run(command, capture_output=True, text=True).stdout.split())
