"""Writing indexed tokens, the format that `indexed` describes and reads.

Invariant: nothing has a final name before all is written, and equal input gives equal files.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo import __version__
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.atomic import private_directory, publish_files
from megatron_huatuo.storage.hashed_file import HashedFile
from megatron_huatuo.storage.indexed import (
    DTYPE_CODES,
    HEADER,
    MAGIC,
    MANIFEST_KIND,
    VERSION,
    IndexedReader,
    index_paths,
    origin_path,
    token_dtype,
)
from megatron_huatuo.storage.manifest import sealed, write_json
from megatron_huatuo.storage.targets import HUATUO_RULE, TargetRule, count_targets, segment_targets, target_table

_BLOCK_TOKENS = 1 << 20


class IndexedWriter:
    """Write one index as a stream; memory does not grow with it, and nothing has a final name before `finish`.

    Use as a context manager: leaving it without `finish` removes everything that was written.
    vocab_size: ids must be below it; it also chooses the dtype (`token_dtype`). rule: that of the chat format that the
    manifest will name; `trained_tokens` is counted by it.
    Cost: hashing dominates (about 1 GB/s of ids); give many documents a call.
    """

    def __init__(self, path_prefix: str | PathLike[str], vocab_size: int, *, rule: TargetRule = HUATUO_RULE) -> None:
        self.vocab_size, self._table = vocab_size, target_table(rule, eos=0)
        self.dtype = token_dtype(vocab_size)
        self.documents = self.sequences = self.tokens = self.trained_tokens = 0
        self._targets = index_paths(path_prefix)
        self._stack = contextlib.ExitStack()
        self._staging = self._stack.enter_context(private_directory(Path(path_prefix), "staging"))
        self._bin = self._open(self._targets[0].name)
        self._lengths, self._modes, self._counts = (self._open(name) for name in ("lengths", "modes", "counts"))
        self._origins: HashedFile | None = None
        self._origin_target = origin_path(path_prefix)

    def _open(self, name: str) -> HashedFile:
        return self._stack.enter_context(HashedFile(self._staging / name))

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add_documents(
        self,
        tokens: NDArray[Any],
        sequence_lengths: NDArray[Any],
        sequence_modes: NDArray[Any],
        sequences_per_document: NDArray[Any],
        origins: NDArray[Any] | None = None,
    ) -> None:
        """Append documents given as flat arrays.

        tokens: whole numbers [sum of sequence_lengths], in order; sequence_lengths: [num_sequences], each > 0;
        sequence_modes: [num_sequences], 0 or 1; sequences_per_document: [num_documents], each > 0;
        origins: [num_documents, 2], number of the input in the manifest's "inputs" and line, for all documents or none.

        Raises: DataError when the arrays do not fit together, or an id is negative or not below `vocab_size`.
        """
        tokens, lengths = np.asarray(tokens), np.asarray(sequence_lengths, dtype=np.int64)
        modes, counts = np.asarray(sequence_modes), np.asarray(sequences_per_document, dtype=np.int64)
        if len(counts) == 0 and len(lengths) == 0 and len(tokens) == 0:
            return
        self._check(tokens, lengths, modes, counts)
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype))
        self._lengths.write(lengths.astype("<i4"))
        self._modes.write(modes.astype("i1"))
        self._counts.write(counts.astype("<i8"))
        self._add_origins(origins, len(counts))
        self.documents += len(counts)
        self.sequences += len(lengths)
        self.tokens += len(tokens)
        self.trained_tokens += self._count_targets(lengths, modes, counts)

    def _count_targets(self, lengths: NDArray[np.int64], modes: NDArray[Any], counts: NDArray[np.int64]) -> int:
        found = segment_targets(np.zeros_like(lengths), lengths, modes, counts, table=self._table)
        return int(count_targets(found).sum())

    def _check(
        self, tokens: NDArray[Any], lengths: NDArray[np.int64], modes: NDArray[Any], counts: NDArray[np.int64]
    ) -> None:
        if len(lengths) == 0 or len(counts) == 0 or lengths.min() < 1 or counts.min() < 1:
            raise DataError("wrong shape of documents: every document needs a sequence, and every sequence a token.")
        if lengths.max() > np.iinfo(np.int32).max:
            raise DataError(f"sequence is too long: got {lengths.max()} tokens, need at most 2147483647. Split it.")
        if not (lengths.sum() == len(tokens) and counts.sum() == len(lengths) == len(modes)):
            raise DataError(
                f"wrong shape of documents: {len(tokens)} tokens, {len(lengths)} lengths that sum to {lengths.sum()}, "
                f"{len(modes)} modes, counts that sum to {counts.sum()}: they must agree."
            )
        if np.any((modes != 0) & (modes != 1)):
            raise DataError("wrong sequence mode: need 0 (context) or 1 (trained on).")
        if not np.issubdtype(tokens.dtype, np.integer):
            raise DataError(f"wrong dtype of tokens: got {tokens.dtype}, need whole numbers.")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise DataError(
                f"token id out of range: got {bad}, need 0 … {self.vocab_size - 1}. Use the index's own tokenizer."
            )

    def _add_origins(self, origins: NDArray[Any] | None, num_documents: int) -> None:
        if self.documents == 0 and origins is not None:
            self._origins = self._open("origins")
        if (origins is None) != (self._origins is None) or (
            origins is not None and np.shape(origins) != (num_documents, 2)
        ):
            raise DataError("wrong shape of origins: need (input, line) for every document, or for none.")
        if self._origins is not None:
            self._origins.write(np.ascontiguousarray(origins, dtype="<i8"))

    def add_index(self, reader: IndexedReader, first_input: int = 0) -> None:
        """Append a whole index, in blocks: shards added in order give the bytes of one run over all their documents.

        first_input: added to the input numbers of its origins; that of its first input among those of all shards.
        """
        indices, origins = reader.document_indices, reader.origins()
        starts = np.append(0, np.cumsum(reader.document_lengths()))
        documents_per_block = max(1, _BLOCK_TOKENS * len(reader) // max(1, len(reader.tokens)))
        for first in range(0, len(reader), documents_per_block):
            last = min(first + documents_per_block, len(reader))
            sequences = slice(int(indices[first]), int(indices[last]))
            self.add_documents(
                reader.tokens[int(starts[first]) : int(starts[last])],
                reader.sequence_lengths[sequences],
                reader.sequence_modes[sequences],
                np.diff(indices[first : last + 1]),
                None if origins is None else origins[first:last] + np.array([first_input, 0]),
            )

    def finish(self, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write `.idx`, publish `.bin` and `.idx`, then the manifest; returns it.

        content: what the manifest says besides kind, version, files, dtype and counts. The manifest holds no time and
        no path, so equal input gives three equal files.
        Raises: DataError when there is no document; OSError when the disk is full.
        """
        if self.documents == 0:
            raise DataError(f"no document to write: {self._targets[0]} would be empty. Check the input.")
        files = {self._targets[0]: self._bin, self._targets[1]: self._write_idx()}
        if self._origins is not None:
            files[self._origin_target] = self._write_origins(self._origins)
        for file in files.values():
            file.flush()
        manifest: dict[str, Any] = {
            "kind": MANIFEST_KIND,
            "format_version": 1,
            "megatron_huatuo": __version__,
            "files": {target.name: file.described() for target, file in files.items()},
            "dtype": self.dtype.name,
            "documents": self.documents,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            **(content or {}),
        }
        manifest = sealed(manifest)
        write_json(self._staging / self._targets[2].name, manifest)
        publish_files(self._staging, [*files, self._targets[2]])
        self._stack.close()
        return manifest

    def _write_origins(self, spooled: HashedFile) -> HashedFile:
        header = io.BytesIO()
        shape = {"descr": "<i8", "fortran_order": False, "shape": (self.documents, 2)}
        np.lib.format.write_array_header_1_0(header, shape)
        written = self._open(self._origin_target.name)
        written.write(header.getvalue())
        for block in spooled.blocks("<i8"):
            written.write(block)
        return written

    def _write_idx(self) -> HashedFile:
        idx = self._open(self._targets[1].name)
        code = next(code for code, dtype in DTYPE_CODES.items() if dtype == self.dtype)
        idx.write(HEADER.pack(MAGIC, VERSION, code, self.sequences, self.documents + 1))
        for block in self._lengths.blocks("<i4"):
            idx.write(block)
        position = 0
        for block in self._lengths.blocks("<i4"):
            ends = position + np.cumsum(block.astype("<i8")) * self.dtype.itemsize
            idx.write(ends - block.astype("<i8") * self.dtype.itemsize)
            position = int(ends[-1])
        boundary = 0
        idx.write(struct.pack("<q", boundary))
        for block in self._counts.blocks("<i8"):
            boundaries = boundary + np.cumsum(block)
            idx.write(boundaries.astype("<i8"))
            boundary = int(boundaries[-1])
        for block in self._modes.blocks("i1"):
            idx.write(block)
        return idx
