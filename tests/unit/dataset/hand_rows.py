"""Rows whose documents are written down token by token."""

from __future__ import annotations

import itertools

import numpy as np

from megatron_huatuo.dataset.row import Row, fill_row
from megatron_huatuo.storage.targets import (
    HUATUO_RULE,
    Segments,
    TargetRule,
    label_tokens,
    segment_targets,
    target_table,
)

EOS = 2
Document = tuple[list[int], list[int], int]


def segments_of(
    modes: list[list[int]], rule: TargetRule = HUATUO_RULE, seq_length: int | None = None, eos: int = EOS
) -> Segments:
    """Segments of documents that are given by the mode of each token; neighbours of one mode make one segment."""
    runs = [[(mode, len(list(run))) for mode, run in itertools.groupby(one)] for one in modes]
    found, lengths = ([run[part] for one in runs for run in one] for part in (0, 1))
    starts = np.cumsum([0, *lengths])[: len(lengths)]
    return segment_targets(
        starts,
        lengths,
        found,
        np.array([len(one) for one in runs], np.int64),
        table=target_table(rule, eos),
        seq_length=seq_length,
    )


def targets_of(
    tokens: list[int], modes: list[int], rule: TargetRule = HUATUO_RULE, seq_length: int | None = None
) -> tuple[list[int], list[int], list[int]]:
    """(tokens, labels, loss_mask) of one document."""
    segments = segments_of([modes], rule, seq_length)
    found = label_tokens(np.array(tokens[: int(segments.lengths.sum())], np.int64), segments)
    return tuple(part.astype(int).tolist() for part in found)  # type: ignore[return-value]


def row_of(documents: list[Document], seq_length: int, rule: TargetRule = HUATUO_RULE, pad_id: int = EOS) -> Row:
    """A row of documents (tokens, modes, source)."""
    segments = segments_of([modes for _, modes, _ in documents], rule, seq_length)
    tokens = np.array([token for part, _, _ in documents for token in part[:seq_length]], np.int64)
    return fill_row(tokens, segments, np.array([source for _, _, source in documents]), seq_length, pad_id)
