"""An index that stock Megatron wrote, `P.bin` and `P.idx` without modes, registered as raw text: its manifest `P.json`.

Invariant: the two files are read and left as they are. What the manifest says of them is measured (sizes, hashes, ids,
how documents end), and what is assumed stands there under `assumed`.
"""

from __future__ import annotations

import hashlib
from os import PathLike, fspath
from typing import Any

import numpy as np

from megatron_huatuo import __version__
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.indexed import MANIFEST_KIND, IndexedReader, index_paths
from megatron_huatuo.storage.manifest import sealed, sha256_file, write_json
from megatron_huatuo.storage.targets import TEXT_RULE

_log = get_logger(__name__)
_BLOCK_BYTES = 16 << 20
ASSUMED = (
    "every token is trained on",
    "the ids are those of the tokenizer named here",
    "a document ends where the index ends one",
)


def register_index(
    path_prefix: str | PathLike[str], tokenizer: str | PathLike[str], *, without_eos: bool = False
) -> dict[str, Any]:
    """Write `P.json` beside `P.bin` and `P.idx`; returns it. Reads every token once (about 1 GB/s).

    without_eos: accept documents that do not end with the tokenizer's end-of-document id.
    Raises: ConfigError when there is a manifest already; DataError when ids or documents do not fit the tokenizer;
    IntegrityError when the files are torn.
    """
    bin_path, idx_path, json_path = index_paths(path_prefix)
    if json_path.exists():
        raise ConfigError(f"index has a manifest already: {json_path}. Move it away to register the index again.")
    reader = IndexedReader(path_prefix, may_lack_modes=True)
    opened = load_tokenizer(tokenizer)
    largest, sha256 = _read_all(reader)
    if largest >= opened.vocab_size:
        raise DataError(
            f"index is of another tokenizer: {bin_path} holds id {largest}, {opened.path} has ids below "
            f"{opened.vocab_size}. Name the tokenizer that it was made with."
        )
    lengths = reader.document_lengths()
    ends = np.cumsum(lengths)[lengths > 0] - 1
    with_eos = int((reader.tokens[ends] == opened.eos_id).sum())
    if with_eos < len(ends) and not without_eos:
        raise DataError(
            f"documents end without the end-of-document id {opened.eos_id}: {len(ends) - with_eos} of {len(ends)} in "
            f"{bin_path}. Index them again with it appended (--append-eod), or accept that they teach no end with "
            "--without-eos."
        )
    manifest = sealed(
        {
            "kind": MANIFEST_KIND,
            "format_version": 1,
            "megatron_huatuo": __version__,
            "files": {
                bin_path.name: {"bytes": bin_path.stat().st_size, "sha256": sha256},
                idx_path.name: {"bytes": idx_path.stat().st_size, "sha256": sha256_file(idx_path)},
            },
            "dtype": reader.dtype.name,
            "documents": len(reader),
            "sequences": len(reader.sequence_lengths),
            "tokens": len(reader.tokens),
            "trained_tokens": int(np.maximum(lengths - 1, 0).sum()),
            "chat_format": TEXT_RULE.chat_format,
            "without_modes": True,
            "assumed": list(ASSUMED),
            "documents_with_eos": with_eos,
            "tokenizer": {
                "path": fspath(tokenizer),
                "sha256": opened.sha256,
                "vocab_size": opened.vocab_size,
                "eos_id": opened.eos_id,
            },
        }
    )
    write_json(json_path, manifest)
    _log.info("%s: %d documents, %d tokens, registered as raw text; assumed: %s", fspath(path_prefix), len(reader),
              len(reader.tokens), "; ".join(ASSUMED))  # fmt: skip
    return manifest


def _read_all(reader: IndexedReader) -> tuple[int, str]:
    """(largest id, sha256) of `P.bin`, in one pass. Raises: DataError for a negative id."""
    digest, largest = hashlib.sha256(), -1
    block = _BLOCK_BYTES // reader.dtype.itemsize
    for start in progress(range(0, len(reader.tokens), block), description="read", unit="block"):
        tokens = reader.tokens[start : start + block]
        digest.update(tokens.tobytes())
        largest = max(largest, int(tokens.max()))
        if int(tokens.min()) < 0:
            raise DataError(f"index holds a negative id: {reader.path_prefix}.bin. It is no index of tokens.")
    return largest, digest.hexdigest()
