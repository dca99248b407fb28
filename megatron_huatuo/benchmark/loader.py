"""How fast rows become batches, and how soon the first one is there.

The peer reads the same documents in the same order through megatron-core's own `IndexedDataset` and concatenates them,
without targets, bounds or padding, which ours adds.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_huatuo.benchmark.measure import interleave, rate_record, surroundings
from megatron_huatuo.benchmark.sample import build_sample_blend
from megatron_huatuo.blend.build import build_blend
from megatron_huatuo.blend.config import parse_blend_config
from megatron_huatuo.dataset.batch import build_batch
from megatron_huatuo.dataset.packed_rows import PackedRows
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.manifest import read_json

_PACKAGES = ("numpy", "torch", "megatron-core")
_SEQ_LENGTH = 4096


def run(*, rows: int = 200, documents: int = 5_713_052, repeats: int = 5) -> list[dict[str, Any]]:
    """Rows a second of one thread, and the start of a run over a large blend.

    rows: rows of 4,096 tokens in one timing. documents: of the large blend, short ones in one source (the recipe's
    corpus has 5,713,052); 0 leaves it out.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blend = build_sample_blend(
            folder / "rows", seq_length=_SEQ_LENGTH, vocab_size=3072, epochs=1 + rows * _SEQ_LENGTH // 20_000
        )
        records = [_rate(PackedRows(blend), rows, repeats)]
        if documents:
            records.append(_start(folder / "large", documents, folder / "rows" / "index" / "sft"))
    return records


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


def _start(folder: Path, documents: int, like: Path) -> dict[str, Any]:
    """Seconds from nothing to the first batch of a blend of `documents` conversations, hashes verified."""
    prefix = folder / "large"
    _write_large_index(prefix, documents, like)
    content = {
        "seq_length": _SEQ_LENGTH,
        "seed": 1,
        "sources": [{"name": "large", "path_prefix": str(prefix), "priority": 1, "epochs": 1}],
    }
    blend = build_blend(parse_blend_config(content, "benchmark"), folder / "blend")
    began = time.perf_counter()
    packed = PackedRows(blend)
    opened = time.perf_counter() - began
    build_batch([packed.row(len(packed) // 2)], torch.device("cpu"))
    return {
        "name": f"loader: open a blend of {documents:,} documents and read a row",
        "ours": time.perf_counter() - began,
        "peer": None,
        "ratio": None,
        "unit": "s",
        "opened_s": opened,
        **surroundings(_PACKAGES),
    }


def _write_large_index(prefix: Path, documents: int, like: Path) -> None:
    """Copies of one small index's documents, cut short so that the disk holds millions of them."""
    tokenizer = read_json(f"{like}.json")["tokenizer"]
    block = 100_000
    with IndexedWriter(prefix, tokenizer["vocab_size"]) as writer:
        for start in range(0, documents, block):
            count = min(block, documents - start)
            lengths = np.tile(np.array([6, 6], np.int64), count)
            tokens = np.tile(np.arange(300, 312, dtype=np.int32), count)
            tokens[11::12] = tokenizer["eos_id"]
            modes = np.tile(np.array([0, 1], np.int8), count)
            writer.add_documents(tokens, lengths, modes, np.full(count, 2, np.int64))
        writer.finish({"tokenizer": tokenizer})
    assert len(IndexedReader(prefix)) == documents
