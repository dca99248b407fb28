"""Looks into a finished blend: what a row holds, where a document is drawn, what any range is made of.

Invariant: reads only; memory is that of one row, or of a block of the order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.schedule_counts import count_sources
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.targets import DocumentsInRows

_BLOCK = 1 << 24


@dataclass(frozen=True)
class RowDocument:
    """One document of a row."""

    source: str
    document: int
    """Number in the source's index."""
    first_token: int
    """Of raw text that is cut into pieces: where in its text it begins; else 0."""
    length: int
    """Tokens that it takes in the row."""
    cut_tokens: int
    """Tokens that it loses at the row's end."""
    tokens: NDArray[Any]
    """Its token ids in the row, without the eos that a cut puts in the last place [length]."""


@dataclass(frozen=True)
class RowContent:
    """What one row holds."""

    row: int
    documents: list[RowDocument]
    padding: int
    """Tokens of padding at its end."""


@dataclass(frozen=True)
class BlendPlace:
    """Where a document is drawn."""

    entry: int
    """Place in the packed order."""
    row: int
    progress: float
    """Fraction of the run's documents before it."""


class BlendView:
    """A blend directory, opened for looking at. Raises: IntegrityError when a file is missing or torn."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._blend = blend = BlendReader(directory)
        self.manifest, self.names = blend.manifest, blend.source_names
        self.source, self.document, self.row_start = blend.order_source, blend.order_document, blend.row_start

    def row(self, row: int) -> RowContent:
        """Documents and padding of one row. Raises: ConfigError for a row outside the blend."""
        if not 0 <= row < len(self._blend):
            raise ConfigError(f"wrong row: got {row}, need 0 to {len(self._blend) - 1}")
        seq_length = self._blend.seq_length
        documents = []
        for source, number in self._blend.documents_of(row):
            here = DocumentsInRows(self._index(source), seq_length)
            tokens, _, _ = here.read(number)
            cut = int(here.full_lengths([number])[0]) - len(tokens)
            kept = tokens[:-1] if cut and here.rule.cut_ends_with_eos else tokens
            document, first_token = (int(part[0]) for part in here.origin_of([number]))
            documents.append(RowDocument(self.names[source], document, first_token, len(tokens), cut, kept))
        return RowContent(row, documents, seq_length - sum(document.length for document in documents))

    def places(self, source: str, document: int) -> list[BlendPlace]:
        """Where document number `document` of a source is drawn, once per epoch (of raw text, each of its pieces). Raises: ConfigError for an unknown one."""
        number = self._source_number(source)
        index = self._index(number)
        if not 0 <= document < len(index):
            raise ConfigError(f"wrong document of source {source!r}: got {document}, need 0 to {len(index) - 1}")
        numbers = DocumentsInRows(index, self._blend.seq_length).numbers_of(document)
        found = []
        for start in range(0, len(self.source), _BLOCK):
            block = slice(start, start + _BLOCK)
            is_here = (self.document[block] >= numbers.start) & (self.document[block] < numbers.stop)
            found += (np.flatnonzero(is_here & (self.source[block] == number)) + start).tolist()
        rows = np.searchsorted(self.row_start, found, side="right") - 1
        return [
            BlendPlace(entry, row, entry / len(self.source)) for entry, row in zip(found, rows.tolist(), strict=True)
        ]

    def composition(self, first_row: int, last_row: int) -> dict[str, int]:
        """Documents of each source in the rows first_row … last_row - 1. Raises: ConfigError for a range outside."""
        rows = len(self._blend)
        if not 0 <= first_row <= last_row <= rows:
            raise ConfigError(f"wrong rows: got {first_row} to {last_row}, need a range within 0 to {rows}")
        counts = count_sources(
            self.source, int(self.row_start[first_row]), int(self.row_start[last_row]), len(self.names)
        )
        return dict(zip(self.names, counts.tolist(), strict=True))

    def _source_number(self, name: str) -> int:
        if name not in self.names:
            raise ConfigError(f"unknown source: got {name!r}, need one of {', '.join(self.names)}")
        return self.names.index(name)

    def _index(self, source: int) -> IndexedReader:
        return IndexedReader(self._blend.path_prefixes[source])
