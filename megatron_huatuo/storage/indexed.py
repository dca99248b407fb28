"""Indexed tokens: `P.bin` and `P.idx` in Megatron's MMIDIDX version 1 with sequence modes, and the manifest `P.json`.

Invariant: a reader that opens is safe to index. Every size, pointer and boundary has been checked, so a torn, swapped or
foreign file is refused by name instead of giving garbage; `verify()` proves the bytes as well. A document is one
conversation, a sequence one segment of it, a mode 0 (context) or 1 (trained on). docs/data_formats.md has the layout
byte by byte; `indexed_writer` writes it.
"""

from __future__ import annotations

import struct
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.arrays import map_array
from megatron_huatuo.storage.manifest import read_manifest, verify_files

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, number of sequences, number of document boundaries
DTYPE_CODES: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
MANIFEST_KIND = "index"
_BLOCK = 1 << 20


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype of ids below `vocab_size`: uint16 below 65,500 and int32 from there on, as stock Megatron chooses."""
    return DTYPE_CODES[8] if vocab_size < 65500 else DTYPE_CODES[4]


def index_paths(path_prefix: str | PathLike[str]) -> tuple[Path, Path, Path]:
    """The three files of an index: (`P.bin`, `P.idx`, `P.json`). A dot in the last part of `P` stays."""
    prefix = fspath(path_prefix)
    return Path(prefix + ".bin"), Path(prefix + ".idx"), Path(prefix + ".json")


def origin_path(path_prefix: str | PathLike[str]) -> Path:
    """The optional fourth file, `P.origin.npy`: where each document came from."""
    return Path(fspath(path_prefix) + ".origin.npy")


class IndexedReader:
    """One index, mapped into memory; opening costs one pass over `.idx` and reads nothing of `.bin`.

    sequence_lengths: int32 [num_sequences], tokens of each segment.
    sequence_pointers: int64 [num_sequences], byte offset of each segment in `.bin`.
    document_indices: int64 [num_documents + 1], document d has the sequences document_indices[d] … [d+1] - 1.
    sequence_modes: int8 [num_sequences], 0 context, 1 trained on; all 1 where the file has none.
    tokens: all ids of `.bin`, `dtype` [num_tokens]; dtype: uint16 or int32.
    manifest: content of `P.json`, or None when stock Megatron wrote the index. An index without modes is taken where the
    manifest says so (`tools/register_index.py`), or with `may_lack_modes`.

    Raises: IntegrityError naming the file when one is missing, empty, torn, swapped, of a wrong dtype, or of another
    size than the manifest says.
    """

    def __init__(self, path_prefix: str | PathLike[str], *, may_lack_modes: bool = False) -> None:
        self.path_prefix = fspath(path_prefix)
        self._bin_path, self._idx_path, self._json_path = index_paths(path_prefix)
        for path in (self._idx_path, self._bin_path):
            _check_filled(path)
        self.manifest: dict[str, Any] | None = None
        if self._json_path.exists():
            self.manifest = read_manifest(self._json_path.parent, MANIFEST_KIND, name=self._json_path.name)
            verify_files(self._json_path.parent, self.manifest, hashes=False)
        self._takes_no_modes = may_lack_modes or bool((self.manifest or {}).get("without_modes"))
        self._map_index()
        self._check_structure()
        if self.manifest is not None:
            self._check_manifest(self.manifest)
        self.tokens = np.memmap(self._bin_path, dtype=self.dtype, mode="r")

    def _map_index(self) -> None:
        """Cut the arrays out of `.idx`, whose size must be exactly what its header says."""
        raw = np.memmap(self._idx_path, dtype=np.uint8, mode="r")
        head = raw[: HEADER.size].tobytes()
        if not head.startswith(MAGIC):
            raise IntegrityError(
                f"no MMIDIDX index: {self._idx_path} starts with {head[:9]!r}, need {MAGIC!r}. Check the path."
            )
        if len(head) < HEADER.size:
            raise self._torn(self._idx_path, f"{raw.size} bytes are fewer than a header's {HEADER.size}")
        _, version, code, num_sequences, num_boundaries = HEADER.unpack(head)
        if version != VERSION:
            raise IntegrityError(f"unknown index version: got {version}, need {VERSION} ({self._idx_path}).")
        if code not in DTYPE_CODES:
            raise IntegrityError(
                f"wrong token dtype: got code {code}, need 8 (uint16) or 4 (int32) ({self._idx_path}). Build it again."
            )
        without_modes = HEADER.size + 12 * num_sequences + 8 * num_boundaries
        has_modes = raw.size != without_modes or num_sequences == 0
        if not has_modes and not self._takes_no_modes:
            raise IntegrityError(
                f"index has no sequence modes: {self._idx_path}. They say what is trained on: build it with "
                "tools/preprocess_data.py, or register it as raw text with tools/register_index.py."
            )
        if has_modes and raw.size != without_modes + num_sequences:
            raise self._torn(
                self._idx_path, f"{raw.size} bytes where its header asks for {without_modes + num_sequences}"
            )
        self.dtype = DTYPE_CODES[code]
        parts = [("<i4", num_sequences), ("<i8", num_sequences), ("<i8", num_boundaries)]
        parts += [("i1", num_sequences)] if has_modes else []
        arrays: list[NDArray[Any]] = []
        offset = HEADER.size
        for dtype, count in parts:
            arrays.append(np.frombuffer(raw, dtype=dtype, count=count, offset=offset))
            offset += arrays[-1].nbytes
        if not has_modes:
            arrays.append(np.broadcast_to(np.int8(1), num_sequences))
        self.sequence_lengths, self.sequence_pointers, self.document_indices, self.sequence_modes = arrays

    def _check_structure(self) -> None:
        """Boundaries, pointers, modes and the size of `.bin`, in blocks of bounded memory."""
        indices, num_sequences = self.document_indices, len(self.sequence_lengths)
        if len(indices) < 2:
            raise IntegrityError(f"index holds no document: {self._idx_path}. Build it again.")
        if indices[0] != 0 or indices[-1] != num_sequences:
            raise self._torn(self._idx_path, f"document boundaries do not span its {num_sequences} sequences")
        for start in range(0, len(indices), _BLOCK):
            if np.any(np.diff(indices[start : start + _BLOCK + 1]) < 0):
                raise self._torn(self._idx_path, "document boundaries go backwards")
        position = 0
        for start in range(0, num_sequences, _BLOCK):
            block = slice(start, start + _BLOCK)
            lengths = self.sequence_lengths[block].astype(np.int64)
            if lengths.min() < 0:
                raise self._torn(self._idx_path, "a sequence has a negative length")
            ends = position + np.cumsum(lengths) * self.dtype.itemsize
            if not np.array_equal(self.sequence_pointers[block], ends - lengths * self.dtype.itemsize):
                raise self._torn(self._idx_path, "sequence pointers disagree with the lengths")
            if np.any((self.sequence_modes[block] & ~1) != 0):
                raise self._torn(self._idx_path, "a sequence mode is neither 0 nor 1")
            position = int(ends[-1])
        size = self._bin_path.stat().st_size
        if size != position:
            raise self._torn(self._bin_path, f"{size} bytes where {self._idx_path.name} asks for {position}")

    def _check_manifest(self, manifest: dict[str, Any]) -> None:
        expected = {"dtype": self.dtype.name, "documents": len(self), "sequences": len(self.sequence_lengths)}
        for key, value in expected.items():
            if manifest.get(key) != value:
                raise IntegrityError(
                    f"index differs from its manifest: {key} is {value}, {self._json_path} says {manifest.get(key)}. "
                    "The files belong to different runs: build the index again."
                )

    @staticmethod
    def _torn(path: Path, reason: str) -> IntegrityError:
        return IntegrityError(
            f"file is incomplete or swapped: {path} ({reason}). Restore it, or build the index again."
        )

    def __len__(self) -> int:
        return len(self.document_indices) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path_prefix,)

    def _starts(self, boundaries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token position at which each of these sequence numbers starts; num_sequences stands for the end."""
        last = len(self.sequence_pointers) - 1
        pointers = self.sequence_pointers[np.minimum(boundaries, last)]
        pointers = np.where(boundaries > last, self.tokens.nbytes, pointers)
        return np.asarray(pointers // self.dtype.itemsize, dtype=np.int64)

    def document_lengths(self, documents: ArrayLike | None = None) -> NDArray[np.int64]:
        """Tokens of these documents (None: of all), stored eos included: int64, in the order given."""
        if documents is None:
            return np.diff(self._starts(self.document_indices))
        documents = np.asarray(documents, np.int64)
        return self._starts(self.document_indices[documents + 1]) - self._starts(self.document_indices[documents])

    def context_lengths(self) -> NDArray[np.int64]:
        """Tokens of each document before its first trained one, all of them where there is none: int64 [num_documents].

        A document cut to a row of seq_length tokens keeps something to train on if this is below seq_length - 1.
        """
        trained = np.append(np.flatnonzero(self.sequence_modes == 1), len(self.sequence_modes))
        first_trained = trained[np.searchsorted(trained, self.document_indices[:-1])]
        starts = self._starts(self.document_indices[:-1])
        return self._starts(np.minimum(first_trained, self.document_indices[1:])) - starts

    def document(self, number: int) -> tuple[NDArray[Any], NDArray[np.int8]]:
        """(tokens, modes) of one document, both [length]: ids as a read-only view, a mode for each token.

        Raises: IndexError outside [0, num_documents).
        """
        if not 0 <= number < len(self):
            raise IndexError(f"no document {number}: {self.path_prefix} has {len(self)}")
        first, last = self.document_indices[number : number + 2]
        lengths = self.sequence_lengths[first:last]
        start = int(self.sequence_pointers[first]) // self.dtype.itemsize if first < last else 0
        modes = np.repeat(self.sequence_modes[first:last], lengths)
        return np.asarray(self.tokens[start : start + len(modes)]), modes

    def sequence(self, number: int) -> tuple[NDArray[Any], int]:
        """(ids, mode) of one segment. Raises: IndexError outside [0, num_sequences)."""
        if not 0 <= number < len(self.sequence_lengths):
            raise IndexError(f"no sequence {number}: {self.path_prefix} has {len(self.sequence_lengths)}")
        start = int(self.sequence_pointers[number]) // self.dtype.itemsize
        tokens = self.tokens[start : start + int(self.sequence_lengths[number])]
        return np.asarray(tokens), int(self.sequence_modes[number])

    def origins(self) -> NDArray[np.int64] | None:
        """int64 [num_documents, 2]: number of the input and line of each document, mapped; None where not recorded.

        A document of a `.json` file has the number of its conversation, from 1, in place of the line.
        """
        path = origin_path(self.path_prefix)
        if self.manifest is None or path.name not in self.manifest["files"]:
            return None
        return map_array(path)

    def origin(self, number: int) -> tuple[str, int] | None:
        """(input file, line) that a document was made from; None where the index does not record it.

        Raises: IntegrityError when the manifest is of an older version, or the origins are another index's.
        """
        origins = self.origins()
        if origins is None or self.manifest is None:
            return None
        file, line = origins[number]
        try:
            return str(self.manifest["inputs"][file]["path"]), int(line)
        except (LookupError, TypeError) as error:
            raise IntegrityError(
                f"inputs are described otherwise: {self._json_path} was written by version "
                f"{self.manifest.get('megatron_huatuo')}, or for other origins. Build the index again."
            ) from error

    def verify(self) -> None:
        """Compare sha256 of all files with the manifest. Raises IntegrityError; reads everything (about 1 GB/s)."""
        if self.manifest is None:
            raise IntegrityError(
                f"index has no manifest: {self._json_path} is missing, so its bytes cannot be verified. "
                "Build it with tools/preprocess_data.py."
            )
        verify_files(self._json_path.parent, self.manifest)


def _check_filled(path: Path) -> None:
    if not path.is_file():
        raise IntegrityError(f"file is missing: {path}. Build the index with tools/preprocess_data.py.")
    if path.stat().st_size == 0:
        raise IntegrityError(f"file is empty: {path}. Restore it, or build the index again.")
