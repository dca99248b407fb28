"""Loss on held-out indexes.

Invariant: a validation sees each held-out document once, in rows like those of training, and changes no weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from megatron_huatuo.blend import pack_rows
from megatron_huatuo.dataset.batch import build_batch
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.row_block import BlockAssembler, RowBlock
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.targets import DocumentsInRows
from megatron_huatuo.train.setup import Training
from megatron_huatuo.train.step import run_microbatches


class HeldOut:
    """Rows of one held-out index, documents in file order."""

    def __init__(self, name: str, path_prefix: str, seq_length: int, tokenizer_sha256: str, eos_id: int) -> None:
        self.name = name
        index = IndexedReader(path_prefix)
        if index.manifest is None:
            raise DataError(
                f"validation source {name} has no manifest: {path_prefix}.json. Index it with tools/preprocess_data.py."
            )
        found = index.manifest["tokenizer"]["sha256"]
        if found != tokenizer_sha256:
            raise DataError(
                f"validation source {name} has another tokenizer: got {found[:12]}, need {tokenizer_sha256[:12]} "
                f"({path_prefix}). Index it with the blend's tokenizer."
            )
        documents = DocumentsInRows(index, seq_length)
        self._blocks = BlockAssembler([documents], seq_length, eos_id)
        self._order, self._row_start = pack_rows(documents.lengths(), seq_length, 1)

    def __len__(self) -> int:
        return len(self._row_start) - 1

    def read(self, rows: Sequence[int]) -> RowBlock:
        """These rows side by side; beyond the last one come empty rows."""
        entries = (self._row_start[np.minimum([row, row + 1], len(self))] for row in rows)
        numbers = [self._order[first:last] for first, last in entries]
        return self._blocks.assemble([np.zeros_like(number) for number in numbers], numbers)


def validate_on(
    training: Training, held_out: HeldOut, layout: BatchLayout, device: torch.device, isolate: bool
) -> float:
    """Mean loss over the trained tokens of one held-out index; all ranks take part and get the same number."""
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for chunk in training.wrapped:
        chunk.eval()
    with torch.no_grad():
        for start in range(0, len(held_out), layout.global_batch_size):
            batches = [
                build_batch(held_out.read(layout.rows(start, m)), device, isolate_documents=isolate)
                for m in range(layout.num_microbatches)
            ]
            total += run_microbatches(training, batches, 1, forward_only=True).sum(dim=0)[:, 0]
    for chunk in training.wrapped:
        chunk.train()
    dist.all_reduce(total)
    return float(total[0] / total[1]) if total[1] > 0 else math.nan
