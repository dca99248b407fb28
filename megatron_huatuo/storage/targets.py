"""What is trained on: the only file that decides it.

An index stores tokens in segments, each with a mode (0 context, 1 trained on). This file says what follows from them: which
token is the target of which place, which targets count, and what becomes of a document that is longer than a row. The
answer depends on the chat format that the index's manifest names. It stands in storage/ because all who read an index need
the same answer: the writer (counts), the blend (lengths, what can be drawn), rows, validation, inspection and plans.

Invariant: the rules leave here as numbers: a table per rule (`TargetTable`), and what it gives for segments (`Segments`).
Whoever assembles rows copies tokens and fills in labels by them, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.indexed import IndexedReader

CONTEXT, TRAINED = 0, 1
KEEP = -1
"""In `Segments.last_token`: the stored token stays. In `Segments.last_label`: the token that follows in the row."""
_BLOCK = 1 << 18


@dataclass(frozen=True)
class TargetRule:
    """How the modes of one chat format become targets."""

    chat_format: str
    """The name in the index's manifest."""
    answers_end_with_eos: bool
    """The last token of an earlier answer has target eos, whatever follows in the input. Without it the end token of an
    answer stands in the input as a trained token, and nothing is added."""
    cut_ends_with_eos: bool
    """A document longer than a row of L keeps L - 1 tokens and an eos, which takes the mode of the token whose place it
    takes; without it, its first L tokens."""
    becomes_pieces: bool
    """A document longer than a row is cut into pieces of L tokens, each drawn as a document. Nothing is lost: the target
    of a piece's last place is the token that the next piece begins with."""


HUATUO_RULE = TargetRule("huatuo2", answers_end_with_eos=True, cut_ends_with_eos=True, becomes_pieces=False)
NATIVE_RULE = TargetRule("native", answers_end_with_eos=False, cut_ends_with_eos=False, becomes_pieces=False)
TEXT_RULE = TargetRule("text", answers_end_with_eos=False, cut_ends_with_eos=False, becomes_pieces=True)
_RULES = {rule.chat_format: rule for rule in (HUATUO_RULE, NATIVE_RULE, TEXT_RULE)}


def target_rule(manifest: Mapping[str, Any] | None, place: str) -> TargetRule:
    """The rule of an index's manifest; huatuo2's, the indexed format's own, where it names none.

    Raises: DataError for a format of which this version knows no rule. place: path, for the message.
    """
    name = (manifest or {}).get("chat_format", HUATUO_RULE.chat_format)
    try:
        return rule_named(name)
    except KeyError:
        raise DataError(
            f"unknown chat format: got {name!r}, need one of {', '.join(_RULES)} ({place}). "
            "Index the source again, or update megatron_huatuo."
        ) from None


def rule_named(chat_format: str) -> TargetRule:
    """The rule of a chat format. Raises: KeyError."""
    return _RULES[chat_format]


class TargetTable(NamedTuple):
    """A rule in numbers: what becomes of the last place of a segment, by [its mode, what follows it in the document].

    What follows is 0 nothing, 1 a context segment, 2 a trained one. All who assemble rows look up here.
    last_label: int64 [2, 3], an id, or KEEP: the token that follows in the row. last_counts: bool [2, 3], whether that label counts.
    cut_token: id in the last place of a document that is cut to a row, or KEEP: the stored one.
    """

    last_label: NDArray[np.int64]
    last_counts: NDArray[np.bool_]
    cut_token: int


NOTHING, CONTEXT_NEXT, TRAINED_NEXT = 0, 1, 2


def target_table(rule: TargetRule, eos: int) -> TargetTable:
    """The numbers of a rule. A label counts where the next token is trained on; a document's last place has no target.

    >>> target_table(HUATUO_RULE, eos=2).last_label.tolist()
    [[2, -1, -1], [2, 2, -1]]
    >>> target_table(NATIVE_RULE, eos=2).last_counts.astype(int).tolist()
    [[0, 0, 1], [0, 0, 1]]
    """
    label, counts = np.full((2, 3), KEEP, np.int64), np.zeros((2, 3), np.bool_)
    counts[:, TRAINED_NEXT] = True
    label[:, NOTHING] = eos
    if rule.answers_end_with_eos:
        label[TRAINED, CONTEXT_NEXT], counts[TRAINED, CONTEXT_NEXT] = eos, True
    return TargetTable(label, counts, eos if rule.cut_ends_with_eos else KEEP)


class Segments(NamedTuple):
    """Segments of documents as a row takes them, in order; s segments of d documents.

    starts: int64 [s], place of the first token in `IndexedReader.tokens`; lengths: int64 [s], tokens, each > 0.
    is_trained: bool [s], whether the labels inside the segment count (all but that of its last place).
    last_token: int64 [s], id that stands in the last place instead of the stored one, or KEEP.
    last_label: int64 [s], label of the last place, or KEEP: the token that follows in the row.
    last_counts: bool [s], whether the label of the last place counts.
    per_document: int64 [d], segments of each document. The tokens of a document lie together in the index.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    is_trained: NDArray[np.bool_]
    last_token: NDArray[np.int64]
    last_label: NDArray[np.int64]
    last_counts: NDArray[np.bool_]
    per_document: NDArray[np.int64]


def segment_targets(
    starts: ArrayLike,
    lengths: ArrayLike,
    modes: ArrayLike,
    per_document: NDArray[Any],
    *,
    table: TargetTable,
    seq_length: int | None = None,
) -> Segments:
    """Look stored segments up in the rule's table.

    starts, lengths, modes: [s]; per_document: [d], each > 0. seq_length: documents are cut to it (None: none is).
    Inside a document the label of a place is the next token, and it counts where that token's mode is 1.

    Example, one document of two turns under huatuo2's rule with eos 2, tokens 11 12 | 21 22 | 13 | 23 2: labels
    12 21 22 *2* 23 2 2, of which the counting ones are those of places 1 to 5:
    >>> table = target_table(HUATUO_RULE, eos=2)
    >>> found = segment_targets([0, 2, 4, 5], [2, 2, 1, 2], [0, 1, 0, 1], np.array([4]), table=table)
    >>> found.last_label.tolist(), found.last_counts.tolist()
    ([-1, 2, -1, 2], [True, True, True, False])
    """
    start, length = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
    is_trained, per_document = np.asarray(modes) == TRAINED, np.asarray(per_document, np.int64)
    last_token = np.full(length.shape, KEEP, np.int64)
    if seq_length is not None and len(length):
        first = np.cumsum(per_document) - per_document
        before = np.cumsum(length) - length
        before -= np.repeat(before[first], per_document)  # tokens of the document before each segment
        kept = np.minimum(length, seq_length - before)
        if (kept < length).any():
            is_long = np.repeat(np.add.reduceat(length, first) > seq_length, per_document)
            last_token[is_long & (before < seq_length) & (before + length >= seq_length)] = table.cut_token
            keep = kept > 0
            per_document = np.add.reduceat(keep, first, dtype=np.int64)
            start, length = start[keep], kept[keep]
            is_trained, last_token = is_trained[keep], last_token[keep]
    next_trained = np.append(is_trained[1:], False)
    follows = np.where(_goes_on(per_document), np.where(next_trained, TRAINED_NEXT, CONTEXT_NEXT), NOTHING)
    place = is_trained.astype(np.intp), follows
    last_label, last_counts = table.last_label[place], table.last_counts[place]
    return Segments(start, length, is_trained, last_token, last_label, last_counts, per_document)


def _goes_on(per_document: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a segment of the same document follows: bool [s]."""
    goes_on = np.ones(int(per_document.sum()), bool)
    goes_on[np.cumsum(per_document) - 1] = False
    return goes_on


def count_targets(segments: Segments) -> NDArray[np.int64]:
    """Places whose label counts, by document: int64 [d]."""
    if not len(segments.per_document):
        return np.zeros(0, np.int64)
    counting = segments.is_trained * (segments.lengths - 1) + segments.last_counts
    return np.add.reduceat(counting, np.cumsum(segments.per_document) - segments.per_document)


def label_tokens(tokens: NDArray[Any], segments: Segments) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
    """(tokens, labels, loss_mask) of segments that follow one another: the plain form of a row assembler.

    tokens: [n] as they are stored. Returns tokens int64 [n] as the input has them, labels int64 [n] and loss_mask
    float32 [n], 1 where the label counts.
    """
    ends = np.cumsum(segments.lengths) - 1
    tokens = tokens.astype(np.int64)
    _put(tokens, ends, segments.last_token)
    labels = np.empty_like(tokens)
    labels[:-1] = tokens[1:]
    _put(labels, ends, segments.last_label)
    loss_mask = np.repeat(segments.is_trained.astype(np.float32), segments.lengths)
    loss_mask[ends] = segments.last_counts
    return tokens, labels, loss_mask


def _put(values: NDArray[np.int64], places: NDArray[np.int64], replacements: NDArray[np.int64]) -> None:
    there = replacements != KEEP
    values[places[there]] = replacements[there]


class DocumentsInRows:
    """The documents of one index as rows of `seq_length` tokens take them: what a blend draws and a row holds.

    A number counts documents of the index. Under a rule with pieces it counts pieces: a document of L tokens, L > 1, has
    ceil((L - 1) / seq_length) of them, because its L - 1 targets need L - 1 places.

    table: the rule in numbers. piece_start: int64 [documents of the index + 1], the number of each document's first piece,
    where the rule has pieces; else None. A kernel that assembles rows takes both.

    Opening costs nothing, with pieces one pass over the lengths and 8 bytes per document.
    Raises: DataError for an unknown chat format.
    """

    def __init__(self, index: IndexedReader, seq_length: int) -> None:
        self.index, self.seq_length = index, seq_length
        self.rule = target_rule(index.manifest, index.path_prefix)
        self.table = target_table(self.rule, int((index.manifest or {}).get("tokenizer", {}).get("eos_id", 0)))
        self.piece_start: NDArray[np.int64] | None = None
        self._num_documents = len(index)
        if self.rule.becomes_pieces:
            pieces = -(-np.maximum(index.document_lengths() - 1, 0) // seq_length)
            self.piece_start = np.append(0, np.cumsum(pieces, dtype=np.int64))
            self._num_documents = int(self.piece_start[-1])

    def __len__(self) -> int:
        return self._num_documents

    def origin_of(self, numbers: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(document of the index, its first token that is here), both int64 [d], of these numbers [d]."""
        numbers = np.asarray(numbers, np.int64)
        if self.piece_start is None:
            return numbers, np.zeros_like(numbers)
        document = np.searchsorted(self.piece_start, numbers, side="right") - 1
        return document, (numbers - self.piece_start[document]) * self.seq_length

    def numbers_of(self, document: int) -> range:
        """The numbers that a document of the index has here: one, or those of its pieces."""
        if self.piece_start is None:
            return range(document, document + 1)
        return range(int(self.piece_start[document]), int(self.piece_start[document + 1]))

    def full_lengths(self, numbers: ArrayLike | None = None) -> NDArray[np.int64]:
        """Tokens of these documents (None: of all) before they are cut to a row; of a piece, its own: int64 [d]."""
        if self.piece_start is None:
            return self.index.document_lengths(numbers)
        document, offset = self.origin_of(np.arange(len(self)) if numbers is None else numbers)
        return np.minimum(self.index.document_lengths(document) - offset, self.seq_length)

    def lengths(self, numbers: ArrayLike | None = None) -> NDArray[np.int64]:
        """Tokens that these documents (None: all) take in a row: int64 [d]."""
        return np.minimum(self.full_lengths(numbers), self.seq_length)

    def drawable(self) -> NDArray[np.int64] | None:
        """Numbers of the documents that keep something to train on in a row: int64 [d], or None when all do."""
        long = self.full_lengths() > self.seq_length
        if not long.any():
            return None
        first_lost = self.seq_length - 1 if self.rule.cut_ends_with_eos else self.seq_length
        lost = long & (self.index.context_lengths() >= first_lost)
        return np.flatnonzero(~lost) if lost.any() else None

    def segments(self, numbers: ArrayLike) -> Segments:
        """Segments of these documents, in the order given; numbers: [d] whole numbers in [0, n).

        Raises: DataError for a document without a token, or with a segment without one.
        """
        numbers = np.asarray(numbers, np.int64)
        if self.piece_start is not None:
            return self._pieces(numbers)
        index = self.index
        first = index.document_indices[numbers]
        per_document = index.document_indices[numbers + 1] - first
        before = np.cumsum(per_document) - per_document
        chosen = np.arange(int(per_document.sum())) + np.repeat(first - before, per_document)
        lengths = index.sequence_lengths[chosen]
        if min(per_document.min(initial=1), lengths.min(initial=1)) < 1:
            raise DataError(f"document or sequence has no token: {index.path_prefix}. Index the source again.")
        return segment_targets(
            index.sequence_pointers[chosen] // index.dtype.itemsize,
            lengths,
            index.sequence_modes[chosen],
            per_document,
            table=self.table,
            seq_length=self.seq_length,
        )

    def _pieces(self, numbers: NDArray[np.int64]) -> Segments:
        """One segment per piece, all of it trained on; where the document goes on, so does the last label."""
        index = self.index
        document, offset = self.origin_of(numbers)
        starts = index.sequence_pointers[index.document_indices[document]] // index.dtype.itemsize + offset
        lengths, ones = self.lengths(numbers), np.ones(len(numbers), np.int64)
        found = segment_targets(starts, lengths, ones, ones, table=self.table)
        goes_on = offset + lengths < index.document_lengths(document)
        label = found.last_label.copy()
        label[goes_on] = index.tokens[(starts + lengths)[goes_on]]
        return found._replace(last_label=label, last_counts=goes_on)

    def trained_tokens(self) -> NDArray[np.int64]:
        """Places of each document whose label counts: int64 [n]. Reads the index's lengths and modes, not its tokens."""
        blocks = [np.arange(start, min(start + _BLOCK, len(self))) for start in range(0, len(self), _BLOCK)]
        return np.concatenate([count_targets(self.segments(block)) for block in blocks] or [np.zeros(0, np.int64)])

    def read(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(tokens, labels, loss_mask) of one document, all [length], as a row holds them.

        Raises: IndexError outside [0, n).
        """
        if not 0 <= number < len(self):
            raise IndexError(f"no document {number}: {self.index.path_prefix} has {len(self)}")
        found = self.segments([number])
        start = int(found.starts[0])
        return label_tokens(self.index.tokens[start : start + int(found.lengths.sum())], found)
