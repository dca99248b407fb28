"""Shards to one corpus: duplicates over all of them removed, order kept.

Invariant: what is written depends on the shards alone, not on which worker wrote them when; of equal or nearly equal
passages the first in input order stays.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megatron_huatuo.corpus.account import Account, Rejected
from megatron_huatuo.corpus.shard_files import read_keys, shard_path
from megatron_huatuo.errors import DataError
from megatron_huatuo.log import progress
from megatron_huatuo.storage.atomic import open_output
from megatron_huatuo.storage.jsonl import dump_line, read_jsonl
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.storage.records import Document, parse_document
from megatron_huatuo.text.minhash import first_of_group_in_files

Indices = npt.NDArray[np.int64]


class CorpusMerge:
    """The merge of all shards of a run below `folder` into the directory `target`."""

    def __init__(self, folder: Path, tasks: int, target: Path, max_bad_lines: int) -> None:
        """Raises DataError when the shards together have too many bad lines."""
        self.shards = [shard_path(folder, rank) for rank in range(tasks)]
        self.contents = [read_json(shard / "shard.json") for shard in self.shards]
        self.target = target
        self.account = Account()
        for content in self.contents:
            self.account.merge(content["account"])
        bad_lines = sum(content["bad_lines"] for content in self.contents)
        if bad_lines > max_bad_lines:
            raise DataError(
                f"{bad_lines} bad lines in all files, allowed {max_bad_lines}. Mend them, or allow more with "
                "--max-bad-lines."
            )

    def inputs(self) -> dict[str, dict[str, Any]]:
        """{file: {bytes, sha256}} as the tasks read them."""
        return {
            c["input"]["path"]: {"bytes": c["input"]["bytes"], "sha256": c["input"]["sha256"]} for c in self.contents
        }

    def tolerated(self) -> dict[str, int]:
        """Lines that were accepted but are worth knowing, by kind."""
        total: Counter[str] = sum((Counter(content["tolerated"]) for content in self.contents), Counter())
        return dict(sorted(total.items()))

    def write(self, near_duplicate_similarity: float) -> None:
        """Write documents.jsonl, rejected.jsonl and contamination.jsonl."""
        keys = np.concatenate([read_keys(shard) for shard in self.shards])
        exact = first_equal(keys)
        near = self._near_duplicates(len(keys), near_duplicate_similarity)
        named = self._names_of_firsts(exact, near)
        repeated = _repeated_ids(keys)
        seen: Counter[str] = Counter()
        with (
            open_output(self.target / "documents.jsonl") as kept,
            open_output(self.target / "rejected.jsonl") as rejected,
        ):
            for index, passage in self._passages("merge", rejected):
                first = int(exact[index]) if exact[index] != index else int(near[index])
                if first == index:
                    unique = self._unique(passage, bool(repeated[index]), seen)
                    self.account.add_out(unique)
                    kept.write(dump_line(unique.to_record()))
                else:
                    kind = "exact duplicate" if exact[index] != index else "near-duplicate"
                    self._reject(passage, f"{kind}: of {named[first]}", rejected)
        with open_output(self.target / "contamination.jsonl") as report:
            for shard in self.shards:
                report.write((shard / "contamination.jsonl").read_bytes())

    def _passages(self, description: str, rejected: IO[bytes] | None = None) -> Iterator[tuple[int, Document]]:
        """(number over all shards, passage); each shard's own rejections are copied before its passages."""
        index = 0
        for shard in progress(self.shards, description=description, unit="file"):
            if rejected is not None:
                with open(shard / "rejected.jsonl", "rb") as own:
                    shutil.copyfileobj(own, rejected)
            path = shard / "passages.jsonl"
            for line in read_jsonl(path):
                yield index, parse_document(line.record, f"{path}:{line.number}")
                index += 1

    def _near_duplicates(self, number: int, threshold: float) -> Indices:
        """For each passage the first one of its group, int64 [number]."""
        if threshold > 1:  # no signatures were written
            return np.arange(number, dtype=np.int64)
        signatures = (shard / "signatures.bin" for shard in self.shards)
        return first_of_group_in_files(signatures, threshold, self.target / "signatures.tmp")

    def _names_of_firsts(self, exact: Indices, near: Indices) -> dict[int, str]:
        """Ids of the passages that others are duplicates of."""
        numbers = np.arange(len(exact))
        firsts = {int(number) for number in np.unique(np.concatenate([exact[exact != numbers], near[near != numbers]]))}
        if not firsts:
            return {}
        return {index: passage.id for index, passage in self._passages("name duplicates") if index in firsts}

    def _unique(self, passage: Document, repeated: bool, seen: Counter[str]) -> Document:
        """The passage under an id of its own: files may number their records alike."""
        if not repeated:
            return passage
        seen[passage.id] += 1
        if seen[passage.id] == 1:
            return passage
        self.account.add_repairs({"repeated id": 1})
        return Document(
            f"{passage.id}~{seen[passage.id]}", passage.source, passage.language, passage.text, passage.title,
            passage.metadata,
        )  # fmt: skip

    def _reject(self, passage: Document, reason: str, rejected: IO[bytes]) -> None:
        origin = (passage.metadata or {})["origin"]
        row = Rejected(passage.id, reason, origin["file"], origin["line"], passage.source)
        self.account.add_rejected(row)
        rejected.write(dump_line(row.to_record()))


def first_equal(keys: npt.NDArray[Any]) -> Indices:
    """For each passage the first one with the same text, int64 [N]. keys: KEY_DTYPE [N].

    >>> first_equal(np.array([(0, 7, 7), (1, 7, 8), (2, 7, 7)], [("id", "u8"), ("text_high", "u8"), ("text_low", "u8")])).tolist()
    [0, 1, 0]
    """
    order = np.lexsort((np.arange(len(keys)), keys["text_low"], keys["text_high"]))
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = (ordered["text_high"][1:] != ordered["text_high"][:-1]) | (
        ordered["text_low"][1:] != ordered["text_low"][:-1]
    )
    starts = np.flatnonzero(new)
    first = np.empty(len(keys), np.int64)
    first[order] = order[starts[np.cumsum(new) - 1]] if len(keys) else order
    return first


def _repeated_ids(keys: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether an id stands more than once, bool [N]."""
    _, inverse, counts = np.unique(keys["id"], return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)
