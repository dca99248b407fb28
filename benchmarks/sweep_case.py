"""One case of a sweep: a training run of a few steps, started as a user starts it, and what became of it.

Invariant: the case's processes have ended when `run_case` returns or the sweep is stopped (SIGTERM, Ctrl-C), and no outcome
of theirs is an exception.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.settings import SweepBenchmark
from megatron_huatuo.config import dump_yaml
from megatron_huatuo.storage.run_files import LOG
from megatron_huatuo.train.train_config import TrainConfig

_ROOT = Path(__file__).resolve().parent.parent
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|can't allocate memory|not enough memory|"
    r"Cannot allocate memory|MemoryError|exitcode\s*: -9|oom[-_ ]kill",
    re.IGNORECASE,
)
LAUNCH = "{python} -m torch.distributed.run --standalone --nproc-per-node {ranks} {train} --config {config}"
"""How ranks of one machine start; `--launch` names another way for several nodes."""
_STOP_S = 60.0


@dataclass(frozen=True)
class Case:
    """One configuration on a number of ranks. planned: tokens/s/rank that the plan says."""

    name: str
    ranks: int
    config: TrainConfig
    planned: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case. verdict: ok, out of memory, out of time, or failed with the last line that it wrote.

    runs: what log.jsonl says of the steps that count. The figures are None unless the verdict is ok.
    """

    case: Case
    verdict: str
    runs: list[dict[str, Any]]
    tokens_per_s_per_rank: float | None = None
    step_time_s: float | None = None
    memory_gib: float | None = None
    mfu: float | None = None


def run_case(case: Case, folder: Path, settings: SweepBenchmark) -> Outcome:
    """Train `warm_up` + `steps` steps; figures are medians over the latter. Leaves config.yaml and output in `folder`."""
    folder.mkdir(parents=True)
    config = dataclasses.replace(
        case.config,
        run_dir=str(folder / "run"),
        training=dataclasses.replace(case.config.training, train_iters=settings.warm_up + settings.steps),
        checkpoint=dataclasses.replace(case.config.checkpoint, save_interval=None, save_at_end=False, export_hf=None),
        logging=dataclasses.replace(case.config.logging, log_interval=1, tensorboard=False, wandb_project=None),
    )
    (folder / "train.yaml").write_text(dump_yaml(config), encoding="utf-8")
    code = _launch(case, folder, settings)
    output = (folder / "output").read_text(encoding="utf-8", errors="replace")
    steps = _steps(folder / "run" / LOG)[settings.warm_up :]
    if code == 0 and len(steps) == settings.steps:
        return _measured(case, steps)
    if code is None:
        return Outcome(case, "out of time", steps)
    if _OUT_OF_MEMORY.search(output):
        return Outcome(case, "out of memory", steps)
    said = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    return Outcome(case, f"failed: {said[0][:200] if said else f'exit code {code}'}", steps)


def _launch(case: Case, folder: Path, settings: SweepBenchmark) -> int | None:
    """Exit code of the launcher, or None when its time was over; all its processes have ended then."""
    nodes = -(-case.ranks // settings.ranks_per_node)
    words = {"ranks": case.ranks, "nodes": nodes, "ranks_per_node": case.ranks // nodes, "python": sys.executable}
    words |= {"train": _ROOT / "tools" / "train.py", "config": folder / "train.yaml"}
    command = [word.format(**words) for word in shlex.split(settings.launch or LAUNCH)]
    python_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": python_path}
    with open(folder / "output", "wb") as output:
        launcher = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of `finally`
        try:
            return launcher.wait(settings.minutes * 60)
        except subprocess.TimeoutExpired:
            return None
        finally:
            signal.signal(signal.SIGTERM, before)
            _end(launcher)


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Ask first: srun passes it on to all nodes. What is left in the launcher's group is killed."""
    if launcher.poll() is None:
        launcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):  # the group is empty where all went well
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()


def _steps(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _measured(case: Case, steps: list[dict[str, Any]]) -> Outcome:
    def median(key: str) -> float | None:
        values = [step[key] for step in steps if step.get(key) is not None]
        return statistics.median(values) if values else None

    keys = ("iteration", "step_time_s", "tokens_per_s_per_gpu", "memory_gib")
    return Outcome(
        case,
        "ok",
        [{key: step.get(key) for key in keys} for step in steps],
        median("tokens_per_s_per_gpu"),
        median("step_time_s"),
        max((step["memory_gib"] for step in steps if step.get("memory_gib") is not None), default=None),
        median("mfu"),
    )
