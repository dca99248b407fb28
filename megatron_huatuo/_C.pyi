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

class RowAssembler:
    def __init__(self, seq_length: int, pad_id: int) -> None: ...
    def add_source(
        self,
        *,
        tokens: NDArray[Any],
        sequence_lengths: NDArray[np.int32],
        sequence_pointers: NDArray[np.int64],
        sequence_modes: NDArray[np.int8],
        document_indices: NDArray[np.int64],
        piece_start: NDArray[np.int64] | None,
        last_label: NDArray[np.int64],
        last_counts: NDArray[np.bool_],
        cut_token: int,
    ) -> None: ...
    def assemble(
        self,
        source: NDArray[np.int64],
        number: NDArray[np.int64],
        row_start: NDArray[np.int64],
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
        source_of_token: NDArray[np.int64],
    ) -> NDArray[np.int32]: ...

class PairEncoder:
    def encode(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8]]: ...

class ByteLevelEncoder(PairEncoder):
    def __init__(
        self,
        *,
        pieces: list[bytes],
        merges: NDArray[np.int32],
        kinds: NDArray[np.uint8],
        longest_number: int,
        prefer_whole: bool,
    ) -> None: ...

class SentencePieceEncoder(PairEncoder):
    def __init__(
        self, *, pieces: list[str], ranks: list[int], user_defined: list[str], byte_ids: list[int]
    ) -> None: ...

def loss_positions(loss_mask: NDArray[np.float32], multiple: int) -> NDArray[np.int64]: ...
