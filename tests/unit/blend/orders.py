"""Helpers of the blend tests: many small orders, and the index files of small blends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.order_draws import fresh_draws
from megatron_huatuo.blend.order_plan import OrderPlan
from megatron_huatuo.storage.indexed_writer import IndexedWriter

RECIPE_NAMES = ["web_cn", "web_en", "lit_en", "lit_cn", "enc_cn", "enc_en", "books_cn", "books_en", "sft"]
RECIPE_SIZES = [640_621, 367_000, 827_000, 168_000, 398_000, 142_000, 1_950_000, 840_000, 142_248]
RECIPE_PRIORITIES = [32.0, 32.0, 16.0, 16.0, 8.0, 8.0, 4.0, 4.0, 1.0]
RECIPE_EPOCHS = [1, 1, 1, 1, 1, 1, 1, 1, 3]


def seeded_orders(sizes: list[int], priorities: list[float], seeds: range) -> Iterator[NDArray[np.integer]]:
    """Source order for each seed."""
    draws = fresh_draws(sizes, priorities, 0)
    for seed in seeds:
        plan = OrderPlan(dataclasses.replace(draws, seed=seed), num_threads=1)
        yield plan.order(0, plan.total, num_threads=1)[0]


def write_index(prefix: Path, lengths: NDArray[np.integer], *, seed: int = 0, tokenizer: str = "t") -> Path:
    """An index of documents of the given lengths (>= 2): a third of each is context, the rest trained on."""
    rng = np.random.default_rng(seed)
    context = np.maximum(1, np.asarray(lengths) // 3)
    parts = np.stack([context, lengths - context], axis=1).reshape(-1)
    with IndexedWriter(prefix, 1000) as writer:
        writer.add_documents(
            rng.integers(3, 1000, int(parts.sum())), parts, np.tile([0, 1], len(lengths)), np.full(len(lengths), 2)
        )
        writer.finish({"tokenizer": {"sha256": tokenizer, "vocab_size": 1000, "eos_id": 1}})
    return prefix
