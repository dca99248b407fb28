"""Rows of a blend, read through memory maps.

Invariant: row r depends on the blend and r alone, never on ranks, batch sizes or what was read before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from megatron_huatuo.dataset.row import Row, empty_row, read_row
from megatron_huatuo.dataset.row_block import BlockAssembler, RowBlock
from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.manifest import sha256_file
from megatron_huatuo.storage.targets import DocumentsInRows

_SUFFIXES = ("bin", "idx")


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
        self.chat_template = self._common_template()
        self.eos_id: int = self.tokenizer["eos_id"]
        self._blocks = BlockAssembler(self._documents, self.seq_length, self.eos_id)

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

    def _documents_of(self, row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """(source, number) of every document of row `row`: none beyond the last row."""
        entries = self._blend.entries_of(row) if row < len(self) else slice(0, 0)
        return self._blend.order_source[entries], self._blend.order_document[entries]

    def read(self, rows: Sequence[int]) -> RowBlock:
        """These rows side by side; beyond the last one come empty rows."""
        source, number = zip(*map(self._documents_of, rows), strict=True)
        return self._blocks.assemble(source, number)

    def row(self, row: int) -> Row:
        """Row number `row` in its plain form, which `read` equals; beyond the last one, an empty row."""
        if row >= len(self):
            return empty_row(self.seq_length, self.eos_id)
        return read_row(self._documents, *self._documents_of(row), self.seq_length, self.eos_id)

    def _common_template(self) -> str | None:
        """Jinja text of the chat template of the native sources, which must share one; None without such a source."""
        found: dict[str, str] = {}
        for name, index in zip(self.source_names, self._indexes, strict=True):
            if template := (index.manifest or {}).get("chat_template"):
                found.setdefault(template["text"], name)
        if len(found) > 1:
            first, second, *_ = found.values()
            raise DataError(
                f"sources have different chat templates: those of {first} and {second} differ, and a model is served with "
                "one. Index all native sources with one template."
            )
        return next(iter(found), None)
