"""The search for near-duplicates over all shards of a curation: here, or as one task for each band of the signatures.

Invariant: a task publishes its file of pairs whole or not at all, and what is found is the same however the search was
divided, so tasks may run anywhere, be killed, and be done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from megatron_huatuo.execution import ExecutorSettings
from megatron_huatuo.execution.executors import run_tasks
from megatron_huatuo.log import progress
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.text.near_duplicates import NUM_BANDS, Groups, SignatureFiles

_TEXTS_HERE = 1_000_000


class BandSearch:
    """The search over `shards`, whose files of pairs lie in `folder`. threshold: least similarity; above 1 it is off."""

    def __init__(self, shards: Sequence[Path], folder: Path, threshold: float) -> None:
        self.shards, self.folder, self.threshold = shards, folder, threshold

    def run_tasks(self, execution: ExecutorSettings) -> bool:
        """Look for pairs in tasks, where that pays; whether all that the merge needs is there now.

        It does not for up to a million passages, which take less than a minute here, nor with one worker of this machine.
        """
        if self.threshold > 1 or (execution.executor == "local" and execution.workers == 1):
            return True
        if len(SignatureFiles(self.shards)) <= _TEXTS_HERE:
            return True
        return run_tasks(
            "near-duplicates",
            lambda _: [BandTask(self)],
            self.count_tasks(),
            self.folder / "datatrove",
            execution,
            is_done=lambda rank: self.path(rank).exists(),
        )

    def count_tasks(self) -> int:
        """Tasks of the whole search: one for each band, or more for each where a band is too large for one."""
        return NUM_BANDS * SignatureFiles(self.shards).parts

    def path(self, rank: int) -> Path:
        """File of the pairs that task `rank` found: int64 [pairs, 2]."""
        return self.folder / f"{rank:05d}.bin"

    def group(self, number: int) -> Groups:
        """The groups of `number` passages, out of the files of all tasks, or found here when there are none."""
        groups = Groups(number)
        if self.threshold > 1:  # no signatures were written
            return groups
        files = SignatureFiles(self.shards)
        for rank in progress(range(NUM_BANDS * files.parts), description="near-duplicates", unit="band"):
            if self.path(rank).exists():
                pairs = np.fromfile(self.path(rank), np.int64).reshape(-1, 2)
            else:
                band, part = divmod(rank, files.parts)
                pairs = files.find_pairs(band, part, self.threshold, groups)
            groups.join(pairs)
        return groups


class BandTask(PipelineStep):
    """The only step of a task; the task's rank counts the parts of all bands."""

    type, name = "curation", "near-duplicates"

    def __init__(self, search: BandSearch) -> None:
        super().__init__()
        self.search = search

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write the pairs of one part of a band."""
        files = SignatureFiles(self.search.shards)
        band, part = divmod(rank, files.parts)
        pairs = files.find_pairs(band, part, self.search.threshold)
        with atomic_write(self.search.path(rank)) as handle:
            handle.write(pairs.tobytes())
