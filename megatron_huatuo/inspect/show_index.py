"""An index as text for a person: what it holds, and a document decoded with what is trained on marked."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.errors import ConfigError, HuatuoError
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.inspect.show_manifest import describe_manifest
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.targets import TRAINED


def describe_index(path_prefix: str | os.PathLike[str]) -> list[str]:
    """Sizes and document lengths of an index, then its manifest."""
    index = IndexedReader(path_prefix)
    lengths = index.document_lengths()
    trained = int(index.sequence_lengths[index.sequence_modes == TRAINED].sum())
    total = max(1, len(index.tokens))
    lines = [
        f"index {index.path_prefix}: {len(index):,} documents, {len(index.sequence_lengths):,} segments, "
        f"{len(index.tokens):,} tokens ({index.dtype.name}), {trained / total:.1%} trained on",
        f"tokens of a document: least {lengths.min()}, median {int(np.median(lengths))}, most {lengths.max()}",
    ]
    return [
        *lines,
        *(describe_manifest(index.manifest) if index.manifest else ["no manifest: not written by this project"]),
    ]


def describe_document(path_prefix: str | os.PathLike[str], number: int) -> list[str]:
    """One document: where it came from, its segments decoded, and which of them are trained on.

    Raises: ConfigError for a number outside the index.
    """
    index = IndexedReader(path_prefix)
    if not 0 <= number < len(index):
        raise ConfigError(f"wrong document: got {number}, need 0 to {len(index) - 1} ({index.path_prefix}).")
    origin = index.origin(number)
    made_from = f", made from {origin[0]}:{origin[1]}" if origin else ""
    tokens, modes = index.document(number)
    head = f"document {number} of {index.path_prefix}: {len(tokens)} tokens{made_from}"
    return [head, *describe_segments(tokens, modes, open_tokenizer(index))]


def open_tokenizer(index: IndexedReader) -> Tokenizer | None:
    """The tokenizer that an index names; None where it is gone or another one lies in its place: ids are shown then."""
    if index.manifest is None:
        return None
    known = index.manifest["tokenizer"]
    try:
        tokenizer = load_tokenizer(known["path"])
    except HuatuoError:
        return None
    return tokenizer if tokenizer.sha256 == known["sha256"] else None


def describe_segments(tokens: NDArray[Any], modes: NDArray[Any], tokenizer: Tokenizer | None) -> list[str]:
    """One line a segment, `context` or `TRAINED`, with its number of tokens and its text (or ids).

    tokens, modes: [length]. The end of the document is shown as <eos>.
    """
    if not len(tokens):
        return ["  (no tokens)"]
    bounds = [0, *(np.flatnonzero(np.diff(modes)) + 1).tolist(), len(tokens)]
    lines = []
    for start, end in itertools.pairwise(bounds):
        label = "TRAINED" if modes[start] == TRAINED else "context"
        lines.append(f"  {label} {end - start:6d}  {_text(tokens[start:end], tokenizer)}")
    return lines


def _text(ids: NDArray[Any], tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return "ids " + " ".join(map(str, ids.tolist()))
    ends = bool(len(ids)) and int(ids[-1]) == tokenizer.eos_id
    return tokenizer.decode(ids[:-1] if ends else ids) + ("<eos>" if ends else "")
