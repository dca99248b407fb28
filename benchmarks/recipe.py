"""The recipe's nine sources as indexes of made-up documents, for benchmarks that need their sizes and not their text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.sample import SAMPLE
from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.log import progress
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter

SIZES = np.array([640_621, 367_000, 827_000, 168_000, 398_000, 142_000, 1_950_000, 840_000, 142_248])
PRIORITIES = np.array([32.0, 32.0, 16.0, 16.0, 8.0, 8.0, 4.0, 4.0, 1.0])
EPOCHS = np.array([1, 1, 1, 1, 1, 1, 1, 1, 3])
"""The recipe's nine sources, the last one drawn three times: 5,759,365 draws."""
DOCUMENTS = 5_713_052
"""Of all nine together."""
_BAICHUAN2_VOCAB_SIZE = 125_696
_BLOCK_DOCUMENTS = 200_000


def log_normal_lengths(rng: np.random.Generator, count: int, mean: float) -> NDArray[np.int32]:
    """Lengths of `mean` tokens, sigma 1 in the logarithm, each at least 1: int32 [count]."""
    return np.maximum(1, rng.lognormal(np.log(mean) - 0.5, 1.0, count)).astype(np.int32)


def build_recipe_blend(directory: Path, *, documents: int, seq_length: int, mean_length: float) -> Path:
    """A blend of about `documents` documents of `mean_length` tokens below `directory`; returns the blend directory.

    The tokenizer is real, with 3,072 pieces of the bundled sample; ids take 4 bytes, as Baichuan2's do. Disk: 4 bytes per
    token and 39 per document.
    """
    train_tokenizer([SAMPLE / "sft.jsonl"], directory / "tokenizer", 3072)
    tokenizer = load_tokenizer(directory / "tokenizer")
    described = {
        "path": str(directory / "tokenizer"),
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
    }

    def segment_lengths(rng: np.random.Generator, count: int) -> NDArray[np.int32]:
        return log_normal_lengths(rng, count, mean_length / 2)

    sources = write_sources(directory, documents, segment_lengths, _BAICHUAN2_VOCAB_SIZE, described)
    content = {"seq_length": seq_length, "seed": 1, "sources": sources}
    return build_blend(parse_blend_config(content, "benchmark"), directory / "blend")


def write_sources(
    directory: Path,
    documents: int,
    segment_lengths: Callable[[np.random.Generator, int], NDArray[Any]],
    vocab_size: int,
    tokenizer: dict[str, Any],
) -> list[dict[str, Any]]:
    """Write the nine indexes, scaled to about `documents` in all; returns the "sources" of a blend configuration.

    segment_lengths: (random numbers, count) -> tokens of each segment [count]; a document is a context and an answer.
    vocab_size: chooses the width of an id. tokenizer: entry of the indexes' manifests.
    """
    sources = []
    sizes = np.maximum(1, SIZES * documents // DOCUMENTS)
    for number, size in enumerate(progress(sizes.tolist(), description="write indexes", unit="source")):
        prefix, rng = directory / f"source{number}", np.random.default_rng(number)
        with IndexedWriter(prefix, vocab_size) as writer:
            for start in range(0, size, _BLOCK_DOCUMENTS):
                count = min(_BLOCK_DOCUMENTS, size - start)
                lengths = segment_lengths(rng, 2 * count)
                tokens = np.full(int(lengths.sum()), 5, dtype=writer.dtype)
                writer.add_documents(tokens, lengths, np.tile([0, 1], count), np.full(count, 2))
            writer.finish({"tokenizer": tokenizer})
        assert len(IndexedReader(prefix)) == size
        source = {"name": f"s{number}", "path_prefix": str(prefix)}
        sources.append({**source, "priority": float(PRIORITIES[number]), "epochs": int(EPOCHS[number])})
    return sources
