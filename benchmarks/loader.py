"""How fast rows become batches, in any order, and what a step that launches kernels notices of the thread that reads them.

The peers read the same documents: megatron-core's `IndexedDataset` the tokens of the same rows, without targets, bounds or
padding, which ours adds; its `GPTDataset` samples of the same length, with masks and positions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.core.datasets.utils import Split

from benchmarks.measure import Timing, interleave, rate_record
from benchmarks.sample import build_sample_blend
from benchmarks.settings import LoaderBenchmark
from megatron_huatuo.dataset.batch import StepBatches, build_batch
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.row_block import RowBlock, stack_rows
from megatron_huatuo.dataset.rows import PackedRows

_PACKAGES = ("numpy", "torch", "megatron-core")
_SEQ_LENGTH = 4096
_STEPS, _ROWS_PER_STEP, _LAUNCHES_PER_STEP = 10, 4, 4000
_CPU = torch.device("cpu")


def run(settings: LoaderBenchmark) -> list[dict[str, Any]]:
    """Rows per second of one thread, and launches per second beside it; peers are megatron-core's data sets."""
    with tempfile.TemporaryDirectory() as name:
        epochs = 1 + settings.rows * _SEQ_LENGTH // 20_000
        packed = PackedRows(build_sample_blend(Path(name), seq_length=_SEQ_LENGTH, vocab_size=3072, epochs=epochs))
        return [*_rates(packed, Path(name), settings), *_launches(packed, settings.repeats)]


def _rates(packed: PackedRows, folder: Path, settings: LoaderBenchmark) -> list[dict[str, Any]]:
    rows = np.random.default_rng(1).permutation(len(packed))[: settings.rows].tolist()
    prefixes = [source["path_prefix"] for source in packed.manifest["sources"]]
    indexes = [IndexedDataset(prefix, multimodal=True) for prefix in prefixes]
    samples = {
        name: _gpt_dataset(indexes, folder / f"gpt{resets:d}", packed, len(rows), resets=resets)
        for name, resets in (("masks and positions made once", False), ("positions anew in each document", True))
    }

    def ours() -> None:
        for row in rows:
            build_batch(packed.read([row]), _CPU)

    def tokens_only() -> None:
        for row in rows:
            np.concatenate([_read(indexes[source], document) for source, document in packed.documents_of(row)])

    def sampler(dataset: GPTDataset) -> Callable[[], None]:
        def read_all() -> None:
            for sample in range(len(rows)):
                dataset[sample]

        return read_all

    peers = {"IndexedDataset, tokens only": tokens_only}
    peers |= {f"GPTDataset, {name}": sampler(dataset) for name, dataset in samples.items()}
    timings = interleave({"ours": ours, **peers}, settings.repeats)
    return [
        _record(f"rows of 4,096 tokens, any order; {peer}", len(rows), "rows/s", timings, "ours", peer)
        for peer in peers
    ]


def _read(index: IndexedDataset, document: int) -> np.ndarray:
    first, last = index.document_indices[document], index.document_indices[document + 1]
    return np.concatenate([index.get(int(sequence))[0] for sequence in range(first, last)])


@dataclass(frozen=True)
class _Tokenizer:
    """What GPTDataset asks of a tokenizer."""

    eod: int
    vocab_size: int
    unique_identifiers: dict[str, str]


def _gpt_dataset(
    indexes: Sequence[IndexedDataset], prefix: Path, packed: PackedRows, samples: int, *, resets: bool
) -> GPTDataset:
    """The documents of all indexes, a sequence each, as stock Megatron pretrains on them; it repeats and shuffles them."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for index in indexes:
        for document in range(len(index.document_indices) - 1):
            builder.add_item(torch.from_numpy(_read(index, document)))
            builder.end_document()
    builder.finalize(f"{prefix}.idx")
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=packed.seq_length,
        split="1",
        path_to_cache=f"{prefix}-cache",
        tokenizer=_Tokenizer(packed.eos_id, 3072, {"class": "sample"}),
        reset_position_ids=resets,
        reset_attention_mask=resets,
        eod_mask_loss=resets,
        create_attention_mask=False,
    )
    stored = IndexedDataset(str(prefix), multimodal=False)
    numbers = np.arange(len(stored), dtype=np.int32)
    return GPTDataset(stored, str(prefix), numbers, samples, Split.train, config)


class _PlainRows:
    """The same rows by NumPy: what the reading thread did before the kernel."""

    def __init__(self, packed: PackedRows) -> None:
        self._packed = packed

    def read(self, rows: Sequence[int]) -> RowBlock:
        return stack_rows([self._packed.row(row) for row in rows])


def _launches(packed: PackedRows, repeats: int) -> list[dict[str, Any]]:
    """Steps that launch small kernels one after the other while the next step's rows are read, and without that."""
    value, one = torch.zeros(8), torch.ones(8)

    def launch() -> None:
        for _ in range(_LAUNCHES_PER_STEP):
            value.add_(one)

    def beside(rows: Any) -> Callable[[], None]:
        def steps() -> None:
            batches = StepBatches(rows, BatchLayout(_ROWS_PER_STEP, 1, 0, 1), _CPU)
            for step in range(_STEPS):
                batches.next_step(step * _ROWS_PER_STEP)
                launch()
            batches.close()

        return steps

    def alone() -> None:
        for _ in range(_STEPS):
            launch()

    candidates = {
        "beside the kernel": beside(packed),
        "beside NumPy": beside(_PlainRows(packed)),
        "alone": alone,
    }
    timings = interleave(candidates, repeats)
    work = _STEPS * _LAUNCHES_PER_STEP
    return [
        _record(f"small kernels launched {name}, 4 rows per 4,000", work, "launches/s", timings, name, "alone")
        for name in ("beside the kernel", "beside NumPy")
    ]


def _record(name: str, work: int, unit: str, timings: dict[str, list[Timing]], ours: str, peer: str) -> dict[str, Any]:
    return rate_record(
        f"loader: {name}",
        work=work,
        unit=unit,
        ours=timings[ours],
        peer=timings[peer],
        peer_name=peer,
        packages=_PACKAGES,
    )
