"""The blend directory: the names of its files, and the one reader of them for training, inspection and re-planning.

Invariant: a reader that opens is safe to index. Sizes, seal and the way the arrays fit together have been checked;
`verify()` proves the bytes as well. docs/blending.md describes the files, blend/blend_write.py writes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.arrays import map_array
from megatron_huatuo.storage.manifest import fingerprint, read_manifest, verify_files

BLEND_KIND = "blend"
ORDER_SOURCE, ORDER_DOCUMENT, ROW_START = "order_source.npy", "order_document.npy", "row_start.npy"
_BLOCK = 1 << 24
_SOURCE_TYPES, _DOCUMENT_TYPES = (np.uint8, np.uint16), (np.uint32, np.uint64)


class BlendReader:
    """One blend, mapped into memory; opening costs the manifest and one pass over the row starts.

    manifest: content of manifest.json. order_source: uint8 or uint16 [N], source of every packed document.
    order_document: uint32 or uint64 [N], its number in the source's index. row_start: int64 [R + 1], row r holds the
    entries row_start[r] … row_start[r + 1] - 1. source_names: [S]; path_prefixes: [S], the sources' indexes.

    Raises: IntegrityError naming the file when one is missing, torn, damaged or of another blend.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.manifest: dict[str, Any] = read_manifest(self.directory, BLEND_KIND)
        verify_files(self.directory, self.manifest, hashes=False)
        self.order_source: NDArray[Any] = map_array(self.directory / ORDER_SOURCE)
        self.order_document: NDArray[Any] = map_array(self.directory / ORDER_DOCUMENT)
        self.row_start: NDArray[np.int64] = map_array(self.directory / ROW_START)
        self.seq_length: int = self.manifest["seq_length"]
        self.source_names: list[str] = [source["name"] for source in self.manifest["sources"]]
        self.path_prefixes: list[str] = [source["path_prefix"] for source in self.manifest["sources"]]
        self._check_arrays()

    def _check_arrays(self) -> None:
        """The dtypes that the format names, one length for source and document, rows that go forward and end there."""
        starts = self.row_start
        fits = (
            self.order_source.dtype in _SOURCE_TYPES
            and self.order_document.dtype in _DOCUMENT_TYPES
            and starts.dtype == np.int64
            and self.order_source.ndim == self.order_document.ndim == starts.ndim == 1
            and len(starts) >= 1
            and len(self.order_source) == len(self.order_document) == starts[-1]
            and starts[0] == 0
            and all(np.all(np.diff(starts[at : at + _BLOCK + 1]) >= 0) for at in range(0, len(starts) - 1, _BLOCK))
        )
        if not fits:
            raise IntegrityError(f"blend's files do not fit together: {self.directory}. Build it again.")

    def __len__(self) -> int:
        """Rows."""
        return len(self.row_start) - 1

    @property
    def sha256(self) -> str:
        """What a run knows the blend by (`blend_sha256`)."""
        return blend_sha256(self.manifest)

    def entries_of(self, row: int) -> slice:
        """Places of a row in the order. Raises: IndexError for a row outside [0, len(self))."""
        if not 0 <= row < len(self):
            raise IndexError(f"no row {row}: {self.directory} has {len(self)}")
        return slice(int(self.row_start[row]), int(self.row_start[row + 1]))

    def documents_of(self, row: int) -> list[tuple[int, int]]:
        """(source, document) of every document of a row, in order. Raises: IndexError for a row outside the blend."""
        entries = self.entries_of(row)
        return list(zip(self.order_source[entries].tolist(), self.order_document[entries].tolist(), strict=True))

    def verify(self) -> None:
        """Compare sha256 of all files with the manifest. Raises: IntegrityError; reads everything (about 1 GB/s)."""
        verify_files(self.directory, self.manifest)


def blend_sha256(manifest: Mapping[str, Any]) -> str:
    """What a run knows a blend by: sha256 over the hashes of order, rows and indexes."""
    files = {name: manifest["files"][name]["sha256"] for name in (ORDER_SOURCE, ORDER_DOCUMENT, ROW_START)}
    return fingerprint({"files": files, "indexes": [source["index"] for source in manifest["sources"]]})
