"""A real training run of the toy model under torchrun, that can be killed, hung and stopped, and watched by its files.

Invariant: whatever happens to the run, leaving the context ends every process that it started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.storage.run_files import LOG, STARTS, STOP
from megatron_huatuo.train.train_config import TrainConfig

_TRAIN = Path(__file__).resolve().parent.parent / "tools" / "train.py"
_POLL_S = 0.01


class ToyRun:
    """Two gloo ranks of the toy model; torchrun restarts them as often as they fail.

    save_interval: steps. timeout_s: after which ranks give up one that hangs.
    """

    def __init__(self, folder: Path, blend: Path, *, save_interval: int, timeout_s: float) -> None:
        self.run_dir = folder / "run"
        self._folder = folder
        self._launcher: subprocess.Popen[bytes] | None = None
        config = TrainConfig(run_dir=str(self.run_dir))
        config.model.preset = "toy"
        config.data.blend = str(blend)
        config.training.precision, config.training.global_batch_size = "fp32", 2
        config.checkpoint.save_interval, config.checkpoint.asynchronous = save_interval, False
        config.logging.tensorboard = False
        config.runtime.device, config.runtime.distributed_timeout_minutes = "cpu", timeout_s / 60
        (folder / "train.yaml").write_text(yaml.safe_dump(to_plain(config)), encoding="utf-8")
        (folder / "output").touch()

    def __enter__(self) -> ToyRun:
        self.launch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._launcher is None:
            return
        if self._launcher.poll() is None:
            for process in psutil.Process(self._launcher.pid).children(recursive=True):
                process.kill()
            self._launcher.kill()
        self._launcher.wait()

    def launch(self) -> None:
        """Start torchrun; the same command resumes."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["--max-restarts", "1000", str(_TRAIN), "--config", str(self._folder / "train.yaml")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_TRAIN.parents[1])}
        with open(self._folder / "output", "ab") as output:
            self._launcher = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def lines(self) -> dict[int, str]:
        """Lines of log.jsonl by iteration."""
        path = self.run_dir / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return {json.loads(line)["iteration"]: line for line in lines if line.endswith("}")}

    def iteration(self) -> int:
        """Last step that is logged; 0 before the first."""
        return max(self.lines(), default=0)

    def starts(self) -> list[int]:
        """Steps done before each start."""
        path = self.run_dir / STARTS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line)["iteration"] for line in lines]

    def wait_until(self, reached: Callable[[], Any], what: str, limit_s: float = 240.0) -> None:
        """Raises: HuatuoError with the end of the output when it is not reached, or torchrun ends before."""
        end = time.monotonic() + limit_s
        while not reached():
            ended = self._launcher is None or self._launcher.poll() is not None
            if time.monotonic() > end or (ended and not reached()):
                output = (self._folder / "output").read_text(encoding="utf-8", errors="replace")[-3000:]
                raise HuatuoError(f"toy run did not get to {what} in {limit_s:.0f} s:\n{output}")
            time.sleep(_POLL_S)

    def kill(self, rank: int) -> None:
        """As a broken GPU ends its rank: without a word."""
        self._worker(rank).kill()

    def hang(self, rank: int) -> None:
        """As a broken link leaves it: there, and never answering."""
        self._worker(rank).send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        """As maintenance asks: save and end. Raises: HuatuoError when the run does not end well."""
        (self.run_dir / STOP).touch()
        assert self._launcher is not None
        if (code := self._launcher.wait(240)) != 0:
            raise HuatuoError(f"toy run did not stop well: got exit code {code} ({self._folder / 'output'}).")

    def _worker(self, rank: int) -> psutil.Process:
        assert self._launcher is not None
        children = psutil.Process(self._launcher.pid).children(recursive=True)
        workers = [
            child for child in children if str(_TRAIN) in child.cmdline() and child.environ().get("RANK") == str(rank)
        ]
        if len(workers) != 1:
            raise HuatuoError(f"toy run has {len(workers)} processes of rank {rank}, need 1.")
        return workers[0]
