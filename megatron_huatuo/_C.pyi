"""Types of the compiled kernel (csrc/bindings.cpp)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

has_cuda: bool

def vector_kernels() -> str: ...
def use_vector_kernels(name: str) -> bool: ...

class OrderPlan:
    def __init__(
        self,
        *,
        num_documents: NDArray[np.int64],
        num_draws: NDArray[np.int64],
        first_draw: NDArray[np.int64],
        permutation_seeds: NDArray[np.uint64],
        permutation_streams: NDArray[np.uint32],
        held_back_start: NDArray[np.int64],
        held_back: NDArray[np.int64],
        table: NDArray[np.int32],
        exponent: NDArray[np.int32],
        split: NDArray[np.uint64],
        special: NDArray[np.uint64],
        seed: int,
        num_threads: int,
        cell_draws: int = 0,
    ) -> None: ...
    @property
    def total(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def num_cells(self) -> int: ...
    def order(self, start: int, stop: int, source: NDArray[Any], document: NDArray[Any], num_threads: int) -> None: ...
    def order_cuda(
        self, start: int, stop: int, source: NDArray[Any], document: NDArray[Any]
    ) -> tuple[bool, str, float]: ...
    def counts_before(self, position: int) -> NDArray[np.int64]: ...

class RowPacker:
    def __init__(self, seq_length: int, window: int) -> None: ...
    def add(self, document_lengths: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
