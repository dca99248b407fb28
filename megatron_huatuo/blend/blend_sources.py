"""The blend's view of its indexes: which documents can be drawn, how long they are in a row, and what proves them.

Invariant: a document that is drawn keeps something to train on after it is cut to the row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.blend_settings import BlendConfig, BlendSource
from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.indexed import IndexedReader, index_paths
from megatron_huatuo.storage.manifest import sha256_file
from megatron_huatuo.storage.targets import HUATUO_RULE, DocumentsInRows, target_rule

_log = get_logger(__name__)


@dataclass(frozen=True)
class OpenSource:
    """One source, opened."""

    name: str
    path_prefix: str
    num_documents: int
    """Documents of the index; of raw text, the pieces that its texts are cut into (`DocumentsInRows`)."""
    usable: NDArray[np.int64] | None
    """Index numbers of the documents that can be drawn, or None when all can."""
    lengths: NDArray[np.int32]
    """Tokens that each document takes in a row, indexed by index number [num_documents]."""
    full_lengths: NDArray[np.int64]
    """Tokens of each document in the index [num_documents]."""
    fingerprint: dict[str, Any]
    """Hashes of the index files and the tokenizer, and the format where it is not the recipe's."""
    num_texts: int | None = None
    """Of raw text: how many texts the pieces come from."""

    @property
    def num_usable(self) -> int:
        return self.num_documents if self.usable is None else len(self.usable)

    @property
    def untrained_when_cut(self) -> int:
        """Documents left out because a row would end before their first trained token."""
        return self.num_documents - self.num_usable


def open_sources(config: BlendConfig) -> list[OpenSource]:
    """Open all indexes of a configuration.

    Raises: DataError or IntegrityError naming the source and its file.
    """
    opened = [open_source(source, config.seq_length) for source in config.sources]
    first = opened[0]
    for source in opened[1:]:
        if source.fingerprint["tokenizer"] != first.fingerprint["tokenizer"]:
            raise DataError(
                f"sources have different tokenizers: {source.name!r} has {source.fingerprint['tokenizer'][:12]}, "
                f"{first.name!r} has {first.fingerprint['tokenizer'][:12]}. Index all sources with one tokenizer."
            )
    _warn_of_copies(opened)
    return opened


def _warn_of_copies(opened: list[OpenSource]) -> None:
    """Say which sources hold the same bytes, through a link or a copy: their documents are drawn once for each."""
    first: dict[tuple[str, str], str] = {}
    for source in opened:
        content = (source.fingerprint["bin"], source.fingerprint["idx"])
        if (other := first.setdefault(content, source.name)) != source.name:
            _log.warning(
                "sources %r and %r have the same content (%s): each document is drawn for both. Leave one out, or raise the "
                "epochs of the other.", other, source.name, source.path_prefix,
            )  # fmt: skip


def why_no_document(settings: BlendSource, source: OpenSource, seq_length: int) -> str:
    """Why a source gives no document, and what would make it give some."""
    count = source.num_usable
    if source.num_documents == 0:
        return "none of its texts has more than one token. Leave the source out."
    if count == 0:
        return (
            f"each of its {source.num_documents} documents is longer than a row of {seq_length} tokens, and is trained on "
            "only beyond its end. Use longer rows, or leave the source out."
        )
    if settings.epochs == 0:
        return "its epochs are 0. Leave the source out, or raise them."
    return (
        f"its epochs, {settings.epochs:g} of {count} documents, round to none. Use {1 / count:.2g} or more, or leave the "
        "source out."
    )


def open_source(source: BlendSource, seq_length: int) -> OpenSource:
    """Open one index and look at its lengths; the tokens themselves are not read."""
    try:
        index = IndexedReader(source.path_prefix)
    except IntegrityError as error:
        shorter, suffix = os.path.splitext(source.path_prefix)
        hint = f" Or leave {suffix!r} out of path_prefix." if suffix in (".bin", ".idx", ".json") else ""
        raise IntegrityError(
            f"source {source.name!r}: {error}{hint if os.path.exists(shorter + '.idx') else ''}"
        ) from error
    documents = DocumentsInRows(index, seq_length)
    full = documents.full_lengths()
    empty = np.flatnonzero(full < 1)
    if len(empty):
        raise DataError(f"source {source.name!r}: document {empty[0]} is empty ({source.path_prefix}). Index it again.")
    return OpenSource(
        name=source.name,
        path_prefix=source.path_prefix,
        num_documents=len(documents),
        usable=documents.drawable(),
        lengths=np.minimum(full, seq_length).astype(np.int32),
        full_lengths=full,
        fingerprint=index_fingerprint(index, source.name),
        num_texts=len(index) if documents.rule.becomes_pieces else None,
    )


def usable_documents(sources: list[OpenSource], source: NDArray[Any], document: NDArray[Any]) -> NDArray[Any]:
    """Numbers among the usable documents -> numbers in the index."""
    for number, opened in enumerate(sources):
        if opened.usable is not None:
            here = source == number
            document[here] = opened.usable[document[here]]
    return document


def values_of_documents(
    sources: list[OpenSource], source: NDArray[Any], document: NDArray[Any], what: str, dtype: Any
) -> NDArray[Any]:
    """Values of the documents' own arrays (`lengths` or `full_lengths`), in the order given."""
    starts = np.cumsum([0, *(opened.num_documents for opened in sources)], dtype=np.int64)
    if len(sources) > 32:  # one look-up in all sources' values together
        return np.concatenate([getattr(opened, what) for opened in sources])[starts[source] + document]
    values = np.empty(len(source), dtype=dtype)
    for number, opened in enumerate(sources):
        here = np.flatnonzero(source == number)
        values[here] = getattr(opened, what)[document[here]]
    return values


def index_fingerprint(index: IndexedReader, name: str) -> dict[str, Any]:
    """Hashes of an index: `.idx` is hashed again, `.bin` is taken from the manifest (its size has been checked).

    Raises: IntegrityError naming the file when there is no manifest or `.idx` differs from it.
    """
    bin_path, idx_path, json_path = index_paths(index.path_prefix)
    if index.manifest is None:
        raise IntegrityError(f"source {name!r}: file is missing: {json_path}. Index it with tools/preprocess_data.py.")
    files = index.manifest["files"]
    recorded, found = files[idx_path.name]["sha256"], sha256_file(idx_path)
    if found != recorded:
        raise IntegrityError(
            f"source {name!r}: file differs from its manifest: got sha256 {found}, need {recorded} ({idx_path}). "
            "Restore or rebuild it."
        )
    tokenizer = index.manifest.get("tokenizer", {}).get("sha256", "")
    fingerprint = {"bin": files[bin_path.name]["sha256"], "idx": found, "tokenizer": tokenizer}
    chat_format = target_rule(index.manifest, json_path.name).chat_format
    return fingerprint if chat_format == HUATUO_RULE.chat_format else {**fingerprint, "format": chat_format}
