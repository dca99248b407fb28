"""What a run needs besides its blend: first weights, held-out indexes, exam questions, optional packages.

Invariant: `open_inputs` looks at all of them before any process group starts, reads of large files the headers alone, and
writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from megatron_huatuo.checkpoint.hf_weight_files import open_weights
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.storage.run_files import CHECKPOINTS, complete_checkpoints
from megatron_huatuo.train.first_weights import find_first_weights
from megatron_huatuo.train.observers.metrics import import_wandb
from megatron_huatuo.train.small_exam import SmallExam
from megatron_huatuo.train.train_config import TrainConfig
from megatron_huatuo.train.validation import HeldOut


class Inputs(NamedTuple):
    """What a run reads besides its blend: indexes that it is validated on, and questions that it is asked, if there are any."""

    held_out: list[HeldOut]
    exam: SmallExam | None


def open_inputs(config: TrainConfig, rows: PackedRows) -> Inputs:
    """Open them, and refuse what else would fail later. A run that resumes needs no first weights.

    Raises: ConfigError, DataError or IntegrityError naming the setting or the file.
    """
    architecture = config.model.architecture()
    architecture.check_vocabulary(rows.tokenizer["vocab_size"], rows.tokenizer["path"])
    inputs = Inputs(open_held_out(config, rows), open_small_exam(config, rows))
    if config.logging.wandb_project is not None:
        import_wandb(config.logging.wandb_project)
    if config.model.init_from is not None and not complete_checkpoints(Path(config.run_dir) / CHECKPOINTS):
        directory, is_hugging_face = find_first_weights(config.model.init_from, architecture)
        if is_hugging_face:
            open_weights(directory, architecture)
    return inputs


def open_held_out(config: TrainConfig, rows: PackedRows) -> list[HeldOut]:
    """The indexes of data.validation. Raises: DataError, IntegrityError."""
    tokenizer = rows.tokenizer["sha256"]
    return [
        HeldOut(source.name, source.path_prefix, rows.seq_length, tokenizer, rows.eos_id)
        for source in config.data.validation
    ]


def open_small_exam(config: TrainConfig, rows: PackedRows) -> SmallExam | None:
    """The questions of logging.exam as token rows; None without any. Raises: ConfigError, DataError naming file and line."""
    settings = config.logging.exam
    return SmallExam(settings, load_tokenizer(rows.tokenizer["path"]), rows.seq_length) if settings.questions else None
