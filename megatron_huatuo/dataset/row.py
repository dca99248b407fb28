"""A row in its plain form: the tokens, targets and document bounds of documents one after the other.

This is the judge of the kernel (csrc/assemble_rows.cpp), and does its work where it is not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.targets import DocumentsInRows, Segments, label_tokens

PADDING_SOURCE = -1


@dataclass(frozen=True)
class Row:
    """One packed row; L = seq_length.

    tokens, labels: int64 [L]. loss_mask: float32 [L], 1 where the label is trained on.
    document_bounds: int32 [documents + 1], from 0 to L; padding is the last document of its own.
    source_of_token: int16 [L], the index of the source, -1 in padding.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    document_bounds: np.ndarray
    source_of_token: np.ndarray


def empty_row(seq_length: int, pad_id: int) -> Row:
    """A row of padding only: what fills the last global batch."""
    return Row(
        tokens=np.full(seq_length, pad_id, np.int64),
        labels=np.full(seq_length, pad_id, np.int64),
        loss_mask=np.zeros(seq_length, np.float32),
        document_bounds=np.array([0, seq_length], np.int32),
        source_of_token=np.full(seq_length, PADDING_SOURCE, np.int16),
    )


def fill_row(
    tokens: np.ndarray, segments: Segments, source_of_document: np.ndarray, seq_length: int, pad_id: int
) -> Row:
    """Place documents one after the other and pad the rest.

    tokens: [n], the stored tokens of the segments, in order; source_of_document: [d].
    Raises: DataError when they do not fit.
    """
    if len(tokens) > seq_length:
        raise DataError(
            f"row overflows: got {len(tokens)} tokens, need at most {seq_length}. Build the blend again from this index."
        )
    row = empty_row(seq_length, pad_id)
    if len(tokens) == 0:
        return row
    places = slice(0, len(tokens))
    row.tokens[places], row.labels[places], row.loss_mask[places] = label_tokens(tokens, segments)
    lengths = _document_lengths(segments)
    row.source_of_token[places] = np.repeat(source_of_document, lengths)
    bounds = np.concatenate([[0], np.cumsum(lengths), [seq_length] if len(tokens) < seq_length else []])
    return Row(row.tokens, row.labels, row.loss_mask, bounds.astype(np.int32), row.source_of_token)


def _document_lengths(segments: Segments) -> np.ndarray:
    """Tokens of each document: int64 [d]."""
    first = np.cumsum(segments.per_document) - segments.per_document
    return np.add.reduceat(segments.lengths, first)


def read_row(
    sources: Sequence[DocumentsInRows], source: np.ndarray, number: np.ndarray, seq_length: int, pad_id: int
) -> Row:
    """The row that holds these documents in this order; source, number: [d], whole numbers.

    Raises: DataError when they do not fit.
    """
    places, parts = [], []
    for one in np.unique(source):
        here = np.flatnonzero(source == one)
        parts.append(sources[one].segments(number[here]))
        places.append(here)
    if not parts:
        return empty_row(seq_length, pad_id)
    segments = _in_order(places, parts)
    first = np.cumsum(segments.per_document) - segments.per_document
    starts, lengths = segments.starts[first], _document_lengths(segments)
    tokens = np.concatenate(
        [
            sources[one].index.tokens[start : start + length]
            for one, start, length in zip(source.tolist(), starts.tolist(), lengths.tolist(), strict=True)
        ]
    )
    return fill_row(tokens, segments, source, seq_length, pad_id)


def _in_order(places: list[np.ndarray], parts: list[Segments]) -> Segments:
    """Segments of all sources in the order of the row; places: the documents' places in the row, by source."""
    if len(parts) == 1:
        return parts[0]
    per_document = np.concatenate([part.per_document for part in parts])
    place = np.concatenate(places)
    by_segment = np.argsort(np.repeat(place, per_document), kind="stable")
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])[by_segment] for name in Segments._fields[:-1]
    }
    return Segments(**joined, per_document=per_document[np.argsort(place)])
