"""Shards of one index, built on different machines, joined in order.

Invariant: the merged `.bin`, `.idx` and `.origin.npy` are those of one build over all inputs in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.targets import target_rule

_log = get_logger(__name__)

_SAME = ("chat_format", "train_on_thinking", "chat_template", "source")
_SUMS = (
    "conversations",
    "other_source",
    "tags_encoded_apart",
    "answers_joined_to_template",
    "unknown_tokens",
    "answers_not_trained_on",
    "system_in_question",
    "role_tag_in_text",
    "unusual_character",
)
_COUNTERS = ("dropped", "tolerated", "template")
_LISTS = ("inputs", "bad_lines")


def merge_indexes(path_prefixes: Sequence[str | PathLike[str]], output_prefix: str | PathLike[str]) -> dict[str, Any]:
    """Join indexes that `build_index` wrote with one tokenizer and chat format; returns the new manifest.

    Every shard is verified by sha256 first. Memory does not grow with the shards.
    Raises: ConfigError when there is none; IntegrityError when one is torn; DataError when they do not fit together.
    """
    if not path_prefixes:
        raise ConfigError("no index to merge: need at least one prefix. Give --input P.")
    readers = []
    for prefix in progress(path_prefixes, description="verify", unit="index"):
        readers.append(IndexedReader(prefix))
        readers[-1].verify()
    content = _join_manifests(readers)
    rule = target_rule(content, fspath(path_prefixes[0]))
    with IndexedWriter(output_prefix, content["tokenizer"]["vocab_size"], rule=rule) as writer:
        first_input = 0
        for reader in progress(readers, description="merge", unit="index"):
            writer.add_index(reader, first_input)
            first_input += len((reader.manifest or {})["inputs"])
        manifest = writer.finish(content)
    _log.info("%s: %d documents of %d indexes", fspath(output_prefix), manifest["documents"], len(readers))
    return manifest


def _join_manifests(readers: list[IndexedReader]) -> dict[str, Any]:
    manifests = [reader.manifest or {} for reader in readers]
    first = manifests[0]
    for reader, manifest in zip(readers, manifests, strict=True):
        pairs = [(key, manifest.get(key), first.get(key)) for key in _SAME]
        pairs.append(("tokenizer", manifest["tokenizer"]["sha256"], first["tokenizer"]["sha256"]))
        for key, found, expected in pairs:
            if found != expected:
                raise DataError(
                    f"indexes do not fit together: {key} of {reader.path_prefix} is {found!r}, of "
                    f"{readers[0].path_prefix} {expected!r}. Build them with the same settings."
                )
    joined: dict[str, Any] = {key: first[key] for key in (*_SAME, "tokenizer") if key in first}
    joined.update({key: sum(manifest[key] for manifest in manifests) for key in _SUMS if key in first})
    joined.update({key: [item for manifest in manifests for item in manifest[key]] for key in _LISTS})
    for key in _COUNTERS:
        total: Counter[str] = Counter()
        for manifest in manifests:
            total.update(manifest[key])
        joined[key] = dict(total)
    return joined
