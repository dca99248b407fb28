"""Looks into a finished blend: what a row holds, where a document is drawn, what any range is made of.

Invariant: reads only; memory is that of one row, or of a block of the order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.schedule import count_sources
from megatron_huatuo.blend.write import KIND, ORDER_DOCUMENT, ORDER_SOURCE, ROW_START
from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.storage.arrays import map_array
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.manifest import read_manifest, verify_files

_BLOCK = 1 << 24


@dataclass(frozen=True)
class RowDocument:
    """One document of a row."""

    source: str
    document: int
    """Number in the source's index."""
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
class Place:
    """Where a document is drawn."""

    entry: int
    """Place in the packed order."""
    row: int
    progress: float
    """Fraction of the run's documents before it."""


class BlendView:
    """A blend directory, opened for looking at. Raises: IntegrityError when a file is missing or torn."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        root = Path(directory)
        self.manifest = read_manifest(root, KIND)
        verify_files(root, self.manifest, hashes=False)
        self.source = map_array(root / ORDER_SOURCE)
        self.document = map_array(root / ORDER_DOCUMENT)
        self.row_start = map_array(root / ROW_START)
        self.names: list[str] = [source["name"] for source in self.manifest["sources"]]
        if not len(self.source) == len(self.document) == self.row_start[-1]:
            raise IntegrityError(f"blend's files do not fit together: {root}. Build it again.")

    def row(self, row: int) -> RowContent:
        """Documents and padding of one row. Raises: ConfigError for a row outside the blend."""
        rows = len(self.row_start) - 1
        if not 0 <= row < rows:
            raise ConfigError(f"wrong row: got {row}, need 0 to {rows - 1}")
        seq_length = self.manifest["seq_length"]
        documents = []
        for entry in range(int(self.row_start[row]), int(self.row_start[row + 1])):
            source, number = int(self.source[entry]), int(self.document[entry])
            tokens, _ = self._index(source).document(number)
            length = min(len(tokens), seq_length)
            kept = tokens if len(tokens) <= seq_length else tokens[: seq_length - 1]
            documents.append(RowDocument(self.names[source], number, length, len(tokens) - length, kept))
        return RowContent(row, documents, seq_length - sum(document.length for document in documents))

    def places(self, source: str, document: int) -> list[Place]:
        """Where document number `document` of a source is drawn, once an epoch. Raises: ConfigError for an unknown one."""
        number = self._source_number(source)
        total = self.manifest["sources"][number]["num_documents"]
        if not 0 <= document < total:
            raise ConfigError(f"wrong document of source {source!r}: got {document}, need 0 to {total - 1}")
        found = []
        for start in range(0, len(self.source), _BLOCK):
            block = slice(start, start + _BLOCK)
            found += (
                np.flatnonzero((self.document[block] == document) & (self.source[block] == number)) + start
            ).tolist()
        rows = np.searchsorted(self.row_start, found, side="right") - 1
        return [Place(entry, row, entry / len(self.source)) for entry, row in zip(found, rows.tolist(), strict=True)]

    def composition(self, first_row: int, last_row: int) -> dict[str, int]:
        """Documents of each source in the rows first_row … last_row - 1. Raises: ConfigError for a range outside."""
        rows = len(self.row_start) - 1
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
        return IndexedReader(self.manifest["sources"][source]["path_prefix"])
