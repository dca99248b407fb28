"""What a run writes about itself: log.jsonl, TensorBoard, Weights & Biases, status.json.

Invariant: log.jsonl holds each iteration once, in order; a resumed run cuts it back to the iteration it loaded.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.log import get_logger, now
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.manifest import read_json, write_json
from megatron_huatuo.storage.run_files import LOG, STATUS, TENSORBOARD


def write_status(run_dir: Path, state: str, reason: str, iteration: int) -> None:
    """status.json. state: running, finished, stopped or failed."""
    write_json(run_dir / STATUS, {"state": state, "reason": reason, "iteration": iteration})


def update_status(run_dir: Path, iteration: int) -> None:
    """Note how far a run is that status.json calls running. A full disk costs the note, never the run."""
    try:
        if read_json(run_dir / STATUS)["state"] == "running":
            write_status(run_dir, "running", "", iteration)
    except (OSError, IntegrityError, KeyError, TypeError) as unwritable:
        get_logger(__name__).error("status.json not written: %s", unwritable)


def write_failure(run_dir: Path, error: BaseException, since_s: float, iteration: int | None) -> None:
    """status.json of a run that broke off, from any rank. The first failure counts: what the other ranks see after it is
    only that a rank is gone.

    since_s: time.time() of the run's begin; an older failure is another run's. iteration: null for the one noted last.
    """
    path = run_dir / STATUS
    try:
        noted: Any = read_json(path) if path.is_file() else {"state": None, "iteration": 0}
        if noted["state"] == "failed" and path.stat().st_mtime >= since_s:
            return
        reason = f"rank {dist.get_rank()}: {type(error).__name__}: {error}"
        write_status(run_dir, "failed", reason, noted["iteration"] if iteration is None else iteration)
    except (OSError, IntegrityError, KeyError, TypeError) as unwritable:
        get_logger(__name__).error("status.json not written: %s", unwritable)


def cut_log_back(run_dir: Path, iteration: int) -> int:
    """Drop lines after `iteration` and a torn last one; returns how many went."""
    path = run_dir / LOG
    if not path.is_file():
        return 0
    lines = path.read_bytes().splitlines()
    kept = [line for line in lines if _iteration_of(line) is not None and _iteration_of(line) <= iteration]  # type: ignore[operator]
    if len(kept) < len(lines) or (lines and not path.read_bytes().endswith(b"\n")):
        with atomic_write(path) as handle:
            handle.write(b"".join(line + b"\n" for line in kept))
    return len(lines) - len(kept)


def _iteration_of(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return None


def memory_gib(device: torch.device) -> float:
    """Highest memory so far: allocated on the GPU, or resident in this process on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class MetricsWriter:
    """Writes one entry a logged iteration; only the logging rank has one.

    Not-finite numbers become null in log.jsonl, which is JSON. A full disk costs entries, never the run.
    """

    def __init__(
        self, run_dir: Path, *, tensorboard: bool, wandb_project: str | None, config: Any, iteration: int = 0
    ) -> None:
        """iteration: step that the run goes on from; what TensorBoard shows of later ones is of an attempt that ended."""
        self._file = open(run_dir / LOG, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._tensorboard: Any = None
        self._wandb: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=iteration + 1)
        if wandb_project is not None:
            self._wandb = _start_wandb(run_dir, wandb_project, config)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line and send its numbers to the other writers."""
        line = json.dumps(_finite(entry), ensure_ascii=False).encode() + b"\n"
        numbers = dict(_flat(entry))
        end = self._file.tell()
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes written")
            if self._tensorboard is not None:
                for name, value in numbers.items():
                    self._tensorboard.add_scalar(name, value, entry["iteration"])
        except OSError as error:
            get_logger(__name__).error("log entry of iteration %d lost: %s", entry["iteration"], error)
            self._file.truncate(end)
        if self._wandb is not None:
            self._wandb.log(numbers, step=entry["iteration"])

    def close(self) -> None:
        """Flush everything to disk."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
        except OSError as error:
            get_logger(__name__).error("logs not flushed: %s", error)
        if self._wandb is not None:
            self._wandb.finish()


def import_wandb(project: str) -> Any:
    """The package of logging.wandb_project. Raises: ConfigError when it is absent."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"wrong logging.wandb_project: got {project!r}, but wandb is not installed. pip install wandb, or leave it out."
        ) from error
    return wandb


def _start_wandb(run_dir: Path, project: str, config: Any) -> Any:
    """A resumed run goes on in the page of its first start, whose id the run directory keeps."""
    id_file = run_dir / "wandb_id"
    if not id_file.is_file():
        with atomic_write(id_file, "w") as handle:
            handle.write(uuid.uuid4().hex)
    return import_wandb(project).init(
        project=project,
        id=id_file.read_text().strip(),
        dir=str(run_dir),
        name=run_dir.name,
        config=to_plain(config),
        resume="allow",
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


def _flat(entry: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for key, value in entry.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            pairs.append((prefix + key, float(value)))
    return pairs


def progress_line(entry: Mapping[str, Any], train_iters: int) -> str:
    """One line for a person."""
    minutes, seconds = divmod(round(entry["eta_s"]), 60)
    loss = entry["lm_loss"]
    return (
        f"step {entry['iteration']}/{train_iters}  loss {loss:.4f}  grad norm {entry['grad_norm']:.3f}  "
        f"lr {entry['learning_rate']:.2e}  {entry['tokens_per_s_per_gpu']:,.0f} tokens/s/rank  "
        f"step {entry['step_time_s']:.2f} s  left {minutes}:{seconds:02d}"
    )


def show_progress(line: str) -> None:
    """On a terminal the line replaces the one before; in a file every line stays, with its time."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(f"{now()}  {line}", file=sys.stderr, flush=True)
