"""Rows of a blend: the tokens, targets and document bounds of row r.

Invariant: row r depends on the blend and r alone, never on ranks, batch sizes or what was read before.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.index.chat_format import cut_document, targets_of
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.manifest import sha256_file

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
    documents: list[tuple[np.ndarray, np.ndarray, int]], seq_length: int, eos_id: int, pad_id: int | None = None
) -> Row:
    """Place documents one after the other and pad the rest.

    documents: (tokens [n], modes [n], source) each; one longer than the row keeps its first L-1 tokens and an eos.
    Raises: DataError when they do not fit.
    """
    row = empty_row(seq_length, eos_id if pad_id is None else pad_id)
    bounds, start = [0], 0
    for tokens, modes, source in documents:
        tokens, modes = cut_document(tokens, modes, seq_length, eos_id)
        end = start + len(tokens)
        if end > seq_length:
            raise DataError(
                f"row overflows: got {end} tokens, need at most {seq_length}. Build the blend again from this index."
            )
        labels, loss_mask = targets_of(tokens, modes, eos_id)
        row.tokens[start:end] = tokens
        row.labels[start:end] = labels
        row.loss_mask[start:end] = loss_mask
        row.source_of_token[start:end] = source
        start = end
        bounds.append(end)
    if start < seq_length and start > 0:
        bounds.append(seq_length)
    if start == 0:
        bounds = [0, seq_length]
    return Row(row.tokens, row.labels, row.loss_mask, np.array(bounds, np.int32), row.source_of_token)


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

    def _open_index(self, source: dict[str, Any]) -> IndexedReader:
        prefix = source["path_prefix"]
        index = IndexedReader(prefix)
        manifest = index.manifest or {"files": {}, "tokenizer": {}}
        found = {
            suffix: manifest["files"].get(f"{Path(prefix).name}.{suffix}", {}).get("sha256") for suffix in _SUFFIXES
        }
        found["tokenizer"] = manifest["tokenizer"].get("sha256")
        changed = [part for part, value in source["index"].items() if found.get(part) != value]
        if changed:
            raise IntegrityError(
                f"source {source['name']} changed since the blend was built: {', '.join(changed)} of {prefix}, got sha256 "
                f"{found.get(changed[0])}, need {source['index'][changed[0]]}. Build the blend again."
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
        return sum(
            min(_length(self._indexes[source], document), self.seq_length)
            for row in range(first, min(last, len(self)))
            for source, document in self.documents_of(row)
        )

    def row(self, row: int) -> Row:
        """Row number `row`; beyond the last one, an empty row."""
        if row >= len(self):
            return empty_row(self.seq_length, self.eos_id)
        documents = [(*self._indexes[source].document(number), source) for source, number in self.documents_of(row)]
        return fill_row(documents, self.seq_length, self.eos_id)


def _length(index: IndexedReader, document: int) -> int:
    """Tokens of one document, without reading them."""
    sequences = slice(int(index.document_indices[document]), int(index.document_indices[document + 1]))
    return int(index.sequence_lengths[sequences].sum())
