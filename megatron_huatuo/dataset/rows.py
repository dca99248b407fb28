"""Rows of a blend: the tokens, targets and document bounds of row r.

Invariant: row r depends on the blend and r alone, never on ranks, batch sizes or what was read before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.manifest import sha256_file
from megatron_huatuo.storage.targets import DocumentsInRows, Segments, label_tokens

PADDING_SOURCE = -1
_SUFFIXES = ("bin", "idx")


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


class PackedRows:
    """The rows of one blend directory, read through memory maps.

    Opening costs the manifests and the index headers, and with `verify` reads every file once (about 1 GB/s); a row
    costs its own bytes. share: (number, of how many) of the processes that verify together, each other files.
    Raises: IntegrityError when a file of the blend or its sources is missing, torn or of another run of its stage.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, verify: bool = True, share: tuple[int, int] = (0, 1)
    ) -> None:
        self._blend = blend = BlendReader(directory)
        self.directory, self.manifest, self.seq_length = blend.directory, blend.manifest, blend.seq_length
        self.source_names = blend.source_names
        self._indexes = [self._open_index(source) for source in self.manifest["sources"]]
        self._documents = [DocumentsInRows(index, self.seq_length) for index in self._indexes]
        if verify:
            self._verify(*share)
        self.tokenizer = self._common_tokenizer()
        self.eos_id: int = self.tokenizer["eos_id"]

    def __len__(self) -> int:
        return len(self._blend)

    @property
    def fingerprint(self) -> str:
        """sha256 over the hashes of order, rows and indexes: what a resumed run must find unchanged."""
        return self._blend.sha256

    @property
    def chat_formats(self) -> dict[str, str]:
        """{source: chat format of its index}: what an export writes its chat template by."""
        formats = [documents.rule.chat_format for documents in self._documents]
        return dict(zip(self.source_names, formats, strict=True))

    def _open_index(self, source: dict[str, Any]) -> IndexedReader:
        prefix = source["path_prefix"]
        index = IndexedReader(prefix)
        manifest = index.manifest or {"files": {}, "tokenizer": {}}
        found = {
            suffix: manifest["files"].get(f"{Path(prefix).name}.{suffix}", {}).get("sha256") for suffix in _SUFFIXES
        }
        found["tokenizer"] = manifest["tokenizer"].get("sha256")
        found["format"] = manifest.get("chat_format")
        changed = [part for part, value in source["index"].items() if found.get(part) != value]
        if changed:
            raise IntegrityError(
                f"source {source['name']} changed since the blend was built: {', '.join(changed)} of {prefix}, got "
                f"{'' if changed[0] == 'format' else 'sha256 '}{found.get(changed[0])}, need {source['index'][changed[0]]}. "
                "Build the blend again."
            )
        return index

    def _verify(self, number: int, of: int) -> None:
        """Hash one share of all files, the largest first."""
        files = [(self.directory / name, entry) for name, entry in self.manifest["files"].items()]
        for index in self._indexes:
            folder = Path(index.path_prefix).parent
            files += [(folder / name, entry) for name, entry in (index.manifest or {})["files"].items()]
        files.sort(key=lambda item: (-item[1]["bytes"], str(item[0])))
        for path, entry in files[number::of]:
            if (found := sha256_file(path)) != entry["sha256"]:
                raise IntegrityError(
                    f"file differs from its manifest: got sha256 {found}, need {entry['sha256']} ({path}). "
                    "Restore or rebuild it."
                )

    def _common_tokenizer(self) -> dict[str, Any]:
        """Tokenizer entry of the index manifests, which all sources must share."""
        found: dict[str, Any] | None = None
        for name, index in zip(self.source_names, self._indexes, strict=True):
            tokenizer = (index.manifest or {})["tokenizer"]
            if found is not None and tokenizer["sha256"] != found["sha256"]:
                raise DataError(
                    f"sources have different tokenizers: {name} has {tokenizer['sha256'][:12]}, "
                    f"{self.source_names[0]} has {found['sha256'][:12]}. Index all sources with one tokenizer."
                )
            found = found or tokenizer
        if found is None:
            raise DataError(f"blend has no sources ({self.directory}). Build it again.")
        return found

    def documents_of(self, row: int) -> list[tuple[int, int]]:
        """(source, document) of row `row`, in order."""
        return self._blend.documents_of(row)

    def tokens_in(self, first: int, last: int) -> int:
        """Tokens that are no padding in rows first … last - 1; rows beyond the last one have none."""
        blend = self._blend
        entries = slice(*(int(blend.row_start[min(row, len(self))]) for row in (first, last)))
        source, number = blend.order_source[entries], blend.order_document[entries]
        return sum(
            int(documents.lengths(number[source == place]).sum()) for place, documents in enumerate(self._documents)
        )

    def row(self, row: int) -> Row:
        """Row number `row`; beyond the last one, an empty row."""
        if row >= len(self):
            return empty_row(self.seq_length, self.eos_id)
        entries = self._blend.entries_of(row)
        source, number = self._blend.order_source[entries], self._blend.order_document[entries]
        return read_row(self._documents, source, number, self.seq_length, self.eos_id)
