"""The state of one run on one rank, as the parts of the loop share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.storage.run_files import CHECKPOINTS
from megatron_huatuo.train.observers.forgetting import Forgetting
from megatron_huatuo.train.observers.received import ReceivedRates
from megatron_huatuo.train.setup import Training
from megatron_huatuo.train.small_exam import SmallExam
from megatron_huatuo.train.stop import StopRequest
from megatron_huatuo.train.train_config import TrainConfig
from megatron_huatuo.train.validation import HeldOut


@dataclass
class Run:
    """What a rank trains, how far it is, and how far it goes.

    iteration: steps done. consumed_train_samples: rows that they took. last_saved: iteration of the newest checkpoint.
    """

    config: TrainConfig
    rows: PackedRows
    training: Training
    layout: BatchLayout
    device: torch.device
    held_out: list[HeldOut]
    stop: StopRequest
    train_iters: int
    received: ReceivedRates
    forgetting: Forgetting
    exam: SmallExam | None
    iteration: int = 0
    consumed_train_samples: int = 0
    last_saved: int | None = None

    @property
    def run_dir(self) -> Path:
        """Directory of the run."""
        return Path(self.config.run_dir)

    @property
    def checkpoints(self) -> Path:
        """Directory of its checkpoints."""
        return self.run_dir / CHECKPOINTS
