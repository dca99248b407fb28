"""Rows side by side, as a micro-batch takes them: assembled by the kernel, or from rows in their plain form.

Invariant: the kernel gives the bytes of `read_row`, whatever the documents. It follows the tables of storage/targets.py,
and leaves the interpreter to others while it copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo._ext import load_kernel
from megatron_huatuo.dataset.row import Row, read_row
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.targets import DocumentsInRows


@dataclass(frozen=True)
class RowBlock:
    """b rows of L = seq_length places.

    tokens, labels: int64 [b, L]. loss_mask: float32 [b, L], 1 where the label is trained on.
    source_of_token: int64 [b, L], the index of the source, -1 in padding.
    document_bounds: int32 [documents + 1], from 0 to b·L over the rows one after the other; the padding of a row is a
    document of its own.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    loss_mask: NDArray[np.float32]
    source_of_token: NDArray[np.int64]
    document_bounds: NDArray[np.int32]


def stack_rows(rows: Sequence[Row]) -> RowBlock:
    """Rows in their plain form as one block."""
    length = len(rows[0].tokens)
    bounds = [row.document_bounds[:-1] + place * length for place, row in enumerate(rows)]
    return RowBlock(
        tokens=np.stack([row.tokens for row in rows]),
        labels=np.stack([row.labels for row in rows]),
        loss_mask=np.stack([row.loss_mask for row in rows]),
        source_of_token=np.stack([row.source_of_token.astype(np.int64) for row in rows]),
        document_bounds=np.concatenate([*bounds, [len(rows) * length]]).astype(np.int32),
    )


class BlockAssembler:
    """Makes blocks of rows from the documents of these sources; the arrays of their indexes are read where they lie."""

    def __init__(self, sources: Sequence[DocumentsInRows], seq_length: int, pad_id: int) -> None:
        self._sources, self._seq_length, self._pad_id = sources, seq_length, pad_id
        kernel = load_kernel()
        self._kernel = kernel.RowAssembler(seq_length, pad_id) if kernel else None
        if self._kernel:
            for documents in sources:
                index, table = documents.index, documents.table
                self._kernel.add_source(
                    tokens=index.tokens,
                    sequence_lengths=index.sequence_lengths,
                    sequence_pointers=index.sequence_pointers,
                    sequence_modes=index.sequence_modes,
                    document_indices=index.document_indices,
                    piece_start=documents.piece_start,
                    last_label=table.last_label,
                    last_counts=table.last_counts,
                    cut_token=table.cut_token,
                )

    def assemble(
        self, source: Sequence[NDArray[np.integer[Any]]], number: Sequence[NDArray[np.integer[Any]]]
    ) -> RowBlock:
        """The rows that hold these documents; source, number: for each row, whole numbers [documents], which may be none.

        Raises: DataError when a row overflows, or a document does not exist or has no token.
        """
        if self._kernel is None:
            rows = zip(source, number, strict=True)
            return stack_rows([read_row(self._sources, *row, self._seq_length, self._pad_id) for row in rows])
        lengths = [len(row) for row in number]
        row_start = np.append(0, np.cumsum(lengths, dtype=np.int64))
        shape = (len(lengths), self._seq_length)
        tokens, labels, source_of_token = (np.empty(shape, np.int64) for _ in range(3))
        loss_mask = np.empty(shape, np.float32)
        documents = (np.concatenate(part, dtype=np.int64, casting="unsafe") for part in (source, number))
        try:
            bounds = self._kernel.assemble(*documents, row_start, tokens, labels, loss_mask, source_of_token)
        except ValueError as error:
            raise DataError(str(error)) from error
        return RowBlock(tokens, labels, loss_mask, source_of_token, bounds)
