"""How fast rows become batches.

The peer reads the same documents in the same order through megatron-core's own `IndexedDataset` and concatenates them,
without targets, bounds or padding, which ours adds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset

from benchmarks.measure import interleave, rate_record
from benchmarks.sample import build_sample_blend
from benchmarks.settings import LoaderBenchmark
from megatron_huatuo.dataset.batch import build_batch
from megatron_huatuo.dataset.rows import PackedRows

_PACKAGES = ("numpy", "torch", "megatron-core")
_SEQ_LENGTH = 4096


def run(settings: LoaderBenchmark) -> list[dict[str, Any]]:
    """Rows a second of one thread."""
    with tempfile.TemporaryDirectory() as name:
        epochs = 1 + settings.rows * _SEQ_LENGTH // 20_000
        blend = build_sample_blend(Path(name), seq_length=_SEQ_LENGTH, vocab_size=3072, epochs=epochs)
        return [_rate(PackedRows(blend), settings.rows, settings.repeats)]


def _rate(packed: PackedRows, rows: int, repeats: int) -> dict[str, Any]:
    rows = min(rows, len(packed))
    indexes = [IndexedDataset(source["path_prefix"], multimodal=True) for source in packed.manifest["sources"]]

    def ours() -> None:
        for row in range(rows):
            build_batch([packed.row(row)], torch.device("cpu"))

    def stock() -> None:
        for row in range(rows):
            np.concatenate([_read(indexes[source], document) for source, document in packed.documents_of(row)])

    timings = interleave({"ours": ours, "peer": stock}, repeats)
    return rate_record(
        "loader: rows of 4,096 tokens to batches, 1 thread",
        work=rows,
        unit="rows/s",
        ours=timings["ours"],
        peer=timings["peer"],
        peer_name="megatron-core IndexedDataset, tokens only",
        packages=_PACKAGES,
    )


def _read(index: IndexedDataset, document: int) -> np.ndarray:
    first, last = index.document_indices[document], index.document_indices[document + 1]
    return np.concatenate([index.get(int(sequence))[0] for sequence in range(first, last)])
