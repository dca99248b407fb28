"""The exact priority order: which source and document every draw of a run is.

Invariant: the answer depends on sizes, priorities, epochs and seed alone; not on range, threads, device or machine.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_huatuo._ext import load_kernel
from megatron_huatuo.blend.order_draws import Draws, fresh_draws, is_whole
from megatron_huatuo.blend.order_reference import ReferencePlan
from megatron_huatuo.blend.order_tables import probability_tables
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.log import get_logger

REFERENCE_LIMIT = 2_000_000
"""Draws up to which the Python reference stands in for a missing kernel; more would take hours."""
MAX_THREADS = 1024


def priority_order(
    num_documents: Sequence[int] | ArrayLike,
    priorities: Sequence[float] | ArrayLike,
    seed: int,
    *,
    epochs: Sequence[float] | ArrayLike | None = None,
    start: int = 0,
    stop: int | None = None,
    num_threads: int | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]:
    """Draw all documents without replacement, each next one with probability proportional to its source's priority.

    num_documents: documents of each source, >= 0 [S]; priorities: weight of one document, finite and > 0 [S];
    seed: 0 <= seed < 2^64; epochs: passes over each source [S], fractions take the first part of a permutation.
    start, stop: the range of draws wanted, default all; num_threads: default all cores; device: "cpu" or "cuda".
    Returns: source uint8 (uint16 beyond 256 sources) and document uint32 (uint64 beyond 2^32 documents),
        both [stop - start], always NumPy arrays. Draw k of source i is document perm(seed, i, k // n_i)[k % n_i].
    Raises: ConfigError naming source and value.
    Cost: a plan, about 0.3 ns a draw and kept for the next calls with the same inputs, then the range's own length.

    >>> source, document = priority_order([3, 2], [8.0, 1.0], seed=1)
    >>> sorted(zip(source.tolist(), document.tolist()))
    [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    """
    draws = fresh_draws(num_documents, priorities, seed, epochs)
    key = (draws.num_documents.tobytes(), draws.num_draws.tobytes(), draws.priorities.tobytes(), int(seed))
    plan = _cached_plan(key, _threads(num_threads))
    return plan.order(start, plan.total if stop is None else stop, num_threads=num_threads, device=device)


class OrderPlan:
    """The order of given draws, ready to give any range of it. Bytes held: `nbytes`."""

    def __init__(self, draws: Draws, *, num_threads: int | None = None) -> None:
        """Plan the order. Raises: ConfigError where the kernel is missing and the order is long."""
        self.draws = draws
        self.total = draws.total
        kernel = load_kernel()
        self._plan: Any
        if kernel is None:
            if self.total > REFERENCE_LIMIT:
                raise ConfigError(
                    f"too many draws for the Python reference: got {self.total}, need at most {REFERENCE_LIMIT}. "
                    "Build the kernel with `python setup.py build_ext --inplace`."
                )
            self._plan = ReferencePlan(draws)
            return
        held = draws.held_back or (np.empty(0, dtype=np.int64),) * draws.num_sources
        table, exponent, split, special = probability_tables(draws.priorities.tolist())
        self._plan = kernel.OrderPlan(
            num_documents=draws.num_documents,
            num_draws=draws.num_draws,
            first_draw=draws.first_draw,
            permutation_seeds=draws.permutation_seeds,
            permutation_streams=draws.permutation_streams,
            held_back_start=np.cumsum([0, *(len(part) for part in held)], dtype=np.int64),
            held_back=np.concatenate(held),
            table=table,
            exponent=exponent,
            split=split,
            special=special,
            seed=draws.seed,
            num_threads=_threads(num_threads),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the plan."""
        return int(self._plan.nbytes)

    def order(
        self, start: int, stop: int, *, num_threads: int | None = None, device: str = "cpu"
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]:
        """Source and document of the draws [start, stop). Raises: ConfigError for a range outside the order."""
        if device not in ("cpu", "cuda"):
            raise ConfigError(f"wrong device: got {device!r}, need 'cpu' or 'cuda'")
        for name, value in (("start", start), ("stop", stop)):
            if not is_whole(value):
                raise ConfigError(f"wrong {name}: got {value!r}, need a whole number")
        if not 0 <= start <= stop <= self.total:
            raise ConfigError(f"wrong range of draws: got [{start}, {stop}), need 0 <= start <= stop <= {self.total}")
        source = np.empty(stop - start, dtype=source_dtype(self.draws.num_sources))
        document = np.empty(stop - start, dtype=document_dtype(int(self.draws.num_documents.max())))
        self.order_into(start, source, document, num_threads=num_threads, device=device)
        return source, document

    def order_into(
        self,
        start: int,
        source: NDArray[np.unsignedinteger],
        document: NDArray[np.unsignedinteger],
        *,
        num_threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Write the draws from `start` on into arrays of the dtypes that `order` gives."""
        stop = start + len(source)
        if isinstance(self._plan, ReferencePlan):
            source[:], document[:] = self._plan.order(start, stop)
            return
        if device == "cuda":
            done, reason, _ = self._plan.order_cuda(start, stop, source, document)
            if done:
                return
            _warn_no_gpu(reason)
        self._plan.order(start, stop, source, document, _threads(num_threads))

    def counts_before(self, position: int) -> NDArray[np.int64]:
        """Draws of each source among the first `position` ones [S]."""
        counts: NDArray[np.int64] = self._plan.counts_before(position)
        return counts


@functools.lru_cache(maxsize=2)
def _cached_plan(key: tuple[bytes, bytes, bytes, int], num_threads: int) -> OrderPlan:
    sizes, num_draws, priorities, seed = key
    sources = len(sizes) // 8
    draws = Draws(
        num_documents=np.frombuffer(sizes, dtype=np.int64),
        num_draws=np.frombuffer(num_draws, dtype=np.int64),
        priorities=np.frombuffer(priorities, dtype=np.float64),
        seed=seed,
        permutation_seeds=np.full(sources, seed, dtype=np.uint64),
        permutation_streams=np.arange(sources, dtype=np.uint32),
        first_draw=np.zeros(sources, dtype=np.int64),
    )
    return OrderPlan(draws, num_threads=num_threads)


@functools.lru_cache(maxsize=8)
def _warn_no_gpu(reason: str) -> None:
    get_logger(__name__).warning("no GPU order (%s): the CPU gives the same bytes, slower", reason)


def source_dtype(num_sources: int) -> np.dtype[Any]:
    """uint8, or uint16 beyond 256 sources."""
    return np.dtype(np.uint8 if num_sources <= 256 else np.uint16)


def document_dtype(most_documents: int) -> np.dtype[Any]:
    """uint32, or uint64 for a source of more than 2^32 documents."""
    return np.dtype(np.uint32 if most_documents <= 2**32 else np.uint64)


def _threads(num_threads: int | None) -> int:
    if num_threads is None:
        return len(os.sched_getaffinity(0))
    if not (is_whole(num_threads) and 1 <= num_threads <= MAX_THREADS):
        raise ConfigError(f"wrong num_threads: got {num_threads!r}, need a whole number from 1 to {MAX_THREADS}")
    return int(num_threads)
