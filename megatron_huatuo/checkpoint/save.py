"""Save a checkpoint: plan with all ranks, let each write its share, publish what all have written.

Invariant: a checkpoint takes its name only after every rank has written and hashed its share and the manifest lies
beside the data; a failure on one rank is a failure on all, with nothing under a final name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule

from megatron_huatuo.checkpoint.agreement import tell_all_ranks
from megatron_huatuo.checkpoint.layout import unfinished_directory, write_latest
from megatron_huatuo.checkpoint.share import Share, WrittenShare, plan_share
from megatron_huatuo.checkpoint.store import FORMAT, optimizer_state, weights_state
from megatron_huatuo.checkpoint.writer_process import WriterProcess
from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.storage.atomic import fsync_directory
from megatron_huatuo.storage.manifest import describe_files, write_json, write_manifest
from megatron_huatuo.storage.run_files import CHECKPOINT_KIND, STATE, TRAINING, iteration_name, torn_checkpoints

# What ranks are behind each other beside writing: the coordinator publishes, a writer that was stopped is waited for.
_SLACK_S = 300.0


class SaveError(HuatuoError):
    """A checkpoint that could not be written; the run's earlier checkpoints are untouched."""


class PendingSave:
    """A checkpoint that has been planned. All ranks have one, and finish it together.

    In the background a process of its own writes this rank's share, from now on; else `finish` does.
    """

    def __init__(
        self,
        root: Path,
        iteration: int,
        share: Share,
        training: Mapping[str, Any],
        write_companions: Callable[[Path], None],
        time_limit_s: float,
        background: bool,
    ) -> None:
        self.iteration = iteration
        self._limit_s = time_limit_s + _SLACK_S
        self._root, self._share, self._training, self._write_companions = root, share, training, write_companions
        self._writer: WriterProcess | None = None
        self._collect: Callable[[], WrittenShare] = share.write
        if background:
            try:
                self._writer = WriterProcess(share.write, time_limit_s)
                self._collect = self._writer.result
            except OSError as error:  # no memory for a process: the other ranks hear of it in finish()
                self._collect = partial(_fail, error)

    def is_written(self) -> bool:
        """Whether this rank's writer has ended, well or not."""
        return self._writer is None or self._writer.is_done()

    def finish(self) -> Path:
        """Wait for the writers, agree on what they did, and publish. Raises: SaveError on every rank when one failed."""
        try:
            written = on_all_ranks("write its share", self._collect, self._limit_s)
            on_all_ranks("publish it", lambda: self._publish(written) if dist.get_rank() == 0 else None, self._limit_s)
        except SaveError:
            if dist.get_rank() == 0:
                shutil.rmtree(self._share.directory, ignore_errors=True)  # its space may be what the next save needs
            raise
        return self._root / iteration_name(self.iteration)

    def _publish(self, written: list[WrittenShare]) -> None:
        directory, target = self._share.directory, self._root / iteration_name(self.iteration)
        files = {name: entry for share in written for name, entry in share.files.items()}
        _require_visible(directory, files)
        files |= self._share.write_metadata(written)
        write_json(directory / TRAINING, dict(self._training))
        self._write_companions(directory)
        names = (str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
        files |= describe_files(directory, [name for name in names if name not in files])
        write_manifest(directory, CHECKPOINT_KIND, {"iteration": self.iteration}, dict(sorted(files.items())))
        replaced = directory.with_name(f".{target.name}.replaced.tmp")  # hidden: a torn one, should this end here
        if target.exists():
            os.rename(target, replaced)
        os.rename(directory, target)
        shutil.rmtree(replaced, ignore_errors=True)
        fsync_directory(self._root)
        write_latest(self._root, self.iteration)


def _require_visible(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """What other ranks have written must lie beside what rank 0 has. Raises: FileNotFoundError."""
    for name, entry in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise FileNotFoundError(
                f"rank 0 does not see what another rank has written: {path}. Do all nodes share it?"
            )


def begin_save(
    checkpoints: str | os.PathLike[str],
    iteration: int,
    model_chunks: list[MegatronModule],
    optimizer: MegatronOptimizer | None,
    training: Mapping[str, Any],
    write_companions: Callable[[Path], None],
    *,
    time_limit_s: float = 1800.0,
    background: bool = False,
) -> PendingSave:
    """Plan one checkpoint with all ranks.

    training: content of training.json (consumed_train_samples, fingerprints…); iteration and format are added.
    write_companions: writes config.yaml, architecture.json and tokenizer/ into a directory (called on rank 0).
    time_limit_s: how long a rank may write: a writer in the background is stopped then, and ranks that have written wait
    no longer for one that has not. background: write from now on; else `finish` writes, and until then neither weights
    nor optimizer may change.
    Raises: SaveError on every rank when one of them fails.
    """
    root = Path(checkpoints)
    directory = unfinished_directory(root, iteration)
    limit_s = time_limit_s + _SLACK_S
    on_all_ranks("prepare the directory", lambda: _prepare(directory) if dist.get_rank() == 0 else None, limit_s)
    sharded = weights_state(model_chunks)
    if optimizer is not None:
        sharded["optimizer"] = optimizer_state(optimizer, sharded)
    share = plan_share(sharded, directory)
    content = {**training, "iteration": iteration, "optimizer_format": FORMAT if optimizer else None}
    return PendingSave(root, iteration, share, content, write_companions, time_limit_s, background)


def _fail(error: Exception) -> NoReturn:
    raise error


def save_checkpoint(*arguments: Any, **options: Any) -> Path:
    """`begin_save` and `finish` in one; returns the checkpoint's directory."""
    return begin_save(*arguments, **options).finish()


def _prepare(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    for torn in torn_checkpoints(directory.parent):
        shutil.rmtree(torn)
    (directory / STATE).mkdir(parents=True)


def on_all_ranks(step: str, action: Callable[[], Any], limit_s: float) -> list[Any]:
    """Run one step of a save on every rank; returns all ranks' results. Raises SaveError on all when one failed.

    limit_s: how long a rank may be behind the others.
    """
    failure, result = None, None
    try:
        result = action()
    except Exception as error:  # whatever broke, the other ranks must hear of it
        failure = f"rank {dist.get_rank()} could not {step}: {type(error).__name__}: {error}"
    outcomes = tell_all_ranks((failure, result), limit_s)
    if found := next((text for text, _ in outcomes if text), None):
        raise SaveError(f"checkpoint not saved: {found}. Earlier checkpoints are untouched; free space and go on.")
    return [result for _, result in outcomes]
