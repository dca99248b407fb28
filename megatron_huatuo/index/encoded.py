"""What every format of an index gives: records from raw objects, and documents as flat arrays from records."""

from __future__ import annotations

import abc
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.storage.records import Conversation

_NO_IDS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents in the order of their records; what `IndexedWriter.add_documents` takes.

    tokens: int32 [num_tokens]; sequence_lengths: int64 [num_sequences]; sequence_modes: int8 [num_sequences];
    sequences_per_document: int64 [num_documents]; kept: int64 [num_documents], positions of the records that the
    documents come from; dropped: records by reason; refused: (position, reason) of records that are bad in this format;
    counts: what is remarkable in the documents, by the manifest's key.
    """

    tokens: NDArray[np.int32]
    sequence_lengths: NDArray[np.int64]
    sequence_modes: NDArray[np.int8]
    sequences_per_document: NDArray[np.int64]
    kept: NDArray[np.int64]
    dropped: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def document_ends(self) -> NDArray[np.int64]:
        """Where each document ends in `tokens`: int64 [num_documents]."""
        return np.cumsum(self.sequence_lengths)[np.cumsum(self.sequences_per_document) - 1]


class Record(Protocol):
    """What a format reads: a conversation or a text, of a source."""

    @property
    def source(self) -> str | None:
        """Name of the source; None where the record names none."""


class RecordFormat(abc.ABC):
    """One format, opened with a tokenizer."""

    name: ClassVar[str]
    """In the manifest, by which `storage/targets.py` finds the rule of what is trained on."""
    counts: ClassVar[tuple[str, ...]] = ()
    """Keys of `EncodedDocuments.counts`, which the manifest has too."""

    @abc.abstractmethod
    def parse(self, raw: Any, where: str, notes: Counter[str] | None = None) -> list[Any]:
        """Records of one JSON object. notes: counts what is tolerated or not read. Raises: DataError naming key and place, BlankTextError for one without text."""

    @abc.abstractmethod
    def texts_of(self, record: Any) -> Iterable[str]:
        """The texts that a record holds."""

    @abc.abstractmethod
    def encode(self, records: Sequence[Any]) -> EncodedDocuments:
        """Documents of records."""

    def count_mismatches(
        self, records: Sequence[Any], encoded: EncodedDocuments, limit: int | None = None
    ) -> tuple[int, int]:
        """(checked, mismatched) of the first `limit` documents (None: all): ids against those of the whole text."""
        return 0, 0

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the format, beside its name."""
        return {}


def count_untrained_answers(conversations: Sequence[Conversation]) -> int:
    """Answers that are context because their record says so."""
    return sum(not turn.trained for one in conversations for turn in one.turns)


def join_documents(
    documents: Sequence[Sequence[tuple[NDArray[np.int32], int]]], kept: NDArray[np.int64]
) -> EncodedDocuments:
    """Documents given as runs of ids of one mode; neighbours of one mode become one sequence, empty ones none.

    kept: int64 [num_documents].
    """
    ids: list[NDArray[np.int32]] = [_NO_IDS]
    lengths: list[int] = []
    modes: list[int] = []
    counts: list[int] = []
    for runs in documents:
        before = len(lengths)
        filled = ((part, mode) for part, mode in runs if len(part))
        for mode, group in itertools.groupby(filled, key=lambda run: run[1]):
            parts = [part for part, _ in group]
            ids += parts
            lengths.append(sum(map(len, parts)))
            modes.append(mode)
        counts.append(len(lengths) - before)
    return EncodedDocuments(
        tokens=np.concatenate(ids),
        sequence_lengths=np.array(lengths, np.int64),
        sequence_modes=np.array(modes, np.int8),
        sequences_per_document=np.array(counts, np.int64),
        kept=kept,
    )
