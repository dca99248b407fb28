"""When a run saves, and what lies beside the tensors.

Invariant: at most one checkpoint is being written; a failed save is reported and the run goes on, a failed last one is an
error.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from megatron_huatuo.checkpoint.layout import prune
from megatron_huatuo.checkpoint.save import PendingSave, SaveError, begin_save
from megatron_huatuo.index.formats.chat_template import TEMPLATE_FILE
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.manifest import write_json
from megatron_huatuo.storage.run_files import ARCHITECTURE, CONFIG, TOKENIZER
from megatron_huatuo.train.resume import fingerprints
from megatron_huatuo.train.run import Run
from megatron_huatuo.train.setup import is_log_rank


class Saver:
    """Saves one run. All ranks call its methods at the same steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pending: PendingSave | None = None
        wanted = run.config.checkpoint.asynchronous
        self._asynchronous = run.device.type == "cuda" if wanted is None else wanted
        self._began_s = 0.0

    def is_writing(self) -> bool:
        """Whether this rank's share of a save is still being written in the background."""
        return self._pending is not None and not self._pending.is_written()

    def is_pending(self) -> bool:
        """Whether a save waits to be published: the same on all ranks."""
        return self._pending is not None

    def save(self) -> None:
        """Begin a save; without `checkpoint.asynchronous` also end it."""
        self.finish()
        try:
            self._pending = self._begin(background=self._asynchronous)
        except SaveError as error:
            self._report(error)
        if not self._asynchronous:
            self.finish()

    def save_last(self) -> None:
        """The save that ends a run, here at once, unless the run is a measurement. Raises: SaveError."""
        self.finish()
        run = self._run
        if not run.config.checkpoint.save_at_end:
            return
        if run.last_saved != run.iteration:
            self._publish(self._begin(background=False))

    def finish(self) -> None:
        """Publish the pending save, waiting for its writers where they are not done."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            self._publish(pending)
        except SaveError as error:
            self._report(error)

    def _begin(self, *, background: bool) -> PendingSave:
        run, parallel = self._run, self._run.config.parallel
        self._began_s = time.perf_counter()
        training = {
            "consumed_train_samples": run.consumed_train_samples,
            "fingerprints": fingerprints(run.config, run.training.architecture, run.rows),
            "decisive": run.config.decisive(run.training.architecture),
            "layout": {
                "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
                "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
                "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
            },
            "source_names": run.rows.source_names,
            "chat_formats": run.rows.chat_formats,
            "ignored_config_keys": run.config.model.ignore_config_keys,
            "forgetting": run.forgetting.to_plain(),
            "learning_rate_by_source": run.received.to_plain(),
        }
        _set_forward_hooks(run, enabled=False)
        try:
            return begin_save(
                run.checkpoints,
                run.iteration,
                run.training.chunks,
                run.training.optimizer,
                training,
                self._write_companions,
                time_limit_s=60 * run.config.checkpoint.save_timeout_minutes,
                background=background,
            )
        finally:
            _set_forward_hooks(run, enabled=True)

    def _publish(self, pending: PendingSave) -> None:
        directory = pending.finish()
        run = self._run
        run.last_saved = pending.iteration
        if is_log_rank():
            get_logger(__name__).info("saved %s in %.1f s", directory, time.perf_counter() - self._began_s)
            prune(run.checkpoints, run.config.checkpoint.keep, run.config.checkpoint.keep_every)

    def _report(self, error: SaveError) -> None:
        if is_log_rank():
            get_logger(__name__).error("%s", error)

    def _write_companions(self, directory: Path) -> None:
        """What makes a checkpoint complete beside its tensors."""
        run = self._run
        write_json(directory / ARCHITECTURE, run.training.architecture.to_dict())
        shutil.copyfile(run.run_dir / CONFIG, directory / CONFIG)
        load_tokenizer(run.rows.tokenizer["path"]).copy_to(directory / TOKENIZER)
        if (template := run.rows.chat_template) is not None:  # that of the indexes, whatever became of the tokenizer's
            (directory / TOKENIZER / TEMPLATE_FILE).write_bytes(template.encode("utf-8"))


def _set_forward_hooks(run: Run, *, enabled: bool) -> None:
    """Overlapped parameter gathering updates weights in forward hooks; a save needs them gathered now."""
    if run.config.parallel.overlap_param_gather:
        for chunk in run.training.wrapped:
            if enabled:
                chunk.enable_forward_pre_hook()
            else:
                chunk.disable_forward_pre_hook(param_sync=True)
