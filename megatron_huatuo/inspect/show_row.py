"""A blend as text for a person: its sources and their shares over the run, and a row decoded."""

from __future__ import annotations

import os

from megatron_huatuo.inspect.show_blend import BlendView
from megatron_huatuo.inspect.show_index import describe_segments, open_tokenizer
from megatron_huatuo.inspect.show_manifest import describe_manifest
from megatron_huatuo.storage.indexed import IndexedReader

_PARTS = 5


def describe_blend(directory: str | os.PathLike[str]) -> list[str]:
    """Rows, documents and padding, the sources, their shares in fifths of the run, and the manifest."""
    view = BlendView(directory)
    manifest = view.manifest
    rows = len(view.row_start) - 1
    lines = [
        f"blend {os.fspath(directory)}: {rows:,} rows of {manifest['seq_length']} tokens, {len(view.source):,} documents, "
        f"{manifest['padding_fraction']:.2%} padding",
        f"{'source':24s}{'priority':>10s}{'epochs':>8s}{'documents':>12s}   share of the documents, by fifth of the run",
    ]
    parts = [view.composition(rows * part // _PARTS, rows * (part + 1) // _PARTS) for part in range(_PARTS)]
    for source in manifest["sources"]:
        shares = "".join(f"{part[source['name']] / max(1, sum(part.values())):8.1%}" for part in parts)
        lines.append(
            f"{source['name']:24s}{source['priority']:10g}{source['epochs']:8g}{source['drawn_documents']:12,d}   {shares}"
        )
    return [
        *lines,
        *describe_manifest({key: value for key, value in manifest.items() if key not in ("sources", "inputs")}),
    ]


def describe_row(directory: str | os.PathLike[str], number: int) -> list[str]:
    """Documents of one row in order, each decoded with what is trained on marked, then the padding.

    Raises: ConfigError for a row outside the blend.
    """
    view = BlendView(directory)
    content = view.row(number)
    prefixes = {source["name"]: source["path_prefix"] for source in view.manifest["sources"]}
    indexes = {name: IndexedReader(prefixes[name]) for name in {document.source for document in content.documents}}
    tokenizers = {name: open_tokenizer(index) for name, index in indexes.items()}
    lines = [f"row {number} of {os.fspath(directory)}: {len(content.documents)} documents, {content.padding} padding"]
    for document in content.documents:
        cut = f", {document.cut_tokens} tokens cut off" if document.cut_tokens else ""
        piece = f" from token {document.first_token}" if document.first_token else ""
        lines.append(f"{document.source} document {document.document}{piece}: {document.length} tokens{cut}")
        modes = indexes[document.source].document(document.document)[1][document.first_token :][: len(document.tokens)]
        lines += describe_segments(document.tokens, modes, tokenizers[document.source])
    return lines
