"""Shards to one corpus: duplicates over all of them removed, order kept.

Invariant: what is written depends on the shards alone, not on which worker wrote them when; of equal or nearly equal
passages the first in input order stays.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_huatuo.corpus.account import Account, Rejected
from megatron_huatuo.corpus.band_search import BandSearch
from megatron_huatuo.corpus.shard_files import read_keys
from megatron_huatuo.errors import DataError
from megatron_huatuo.log import progress
from megatron_huatuo.storage.atomic import open_output
from megatron_huatuo.storage.jsonl import dump_line
from megatron_huatuo.storage.manifest import read_json

Indices = npt.NDArray[np.int64]
_EXACT, _NEAR, _HAS_COPIES, _REPEATED_ID = 1, 2, 4, 8  # bits of a mark


class CorpusMerge:
    """The merge of all shards of a run into the directory `target`."""

    def __init__(self, shards: Sequence[Path], target: Path, max_bad_lines: int) -> None:
        """Raises DataError when the shards together have too many bad lines."""
        self.shards = shards
        self.contents = [read_json(shard / "shard.json") for shard in self.shards]
        self.target = target
        self.account = Account()
        for content in self.contents:
            self.account.merge(content["account"])
        bad_lines = sum(content["bad_lines"] for content in self.contents)
        if bad_lines > max_bad_lines:
            raise DataError(
                f"{bad_lines} bad lines in all files, allowed {max_bad_lines}. Fix them, or allow more with "
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

    def write(self, search: BandSearch) -> None:
        """Write documents.jsonl, rejected.jsonl and contamination.jsonl."""
        keys = np.concatenate([read_keys(shard) for shard in self.shards])
        exact = first_equal(keys)
        near = search.group(len(keys)).first
        marks = _mark_passages(keys, exact, near)
        names: dict[int, str] = {}  # of the passages that others are copies of
        seen: Counter[str] = Counter()
        with (
            open_output(self.target / "documents.jsonl") as kept,
            open_output(self.target / "rejected.jsonl") as rejected,
        ):
            for index, (line, mark) in enumerate(zip(self._lines(rejected), marks.tobytes(), strict=True)):
                passage = orjson.loads(line)
                if mark & _HAS_COPIES:
                    names[index] = passage["id"]
                if mark & _EXACT:
                    self._reject(passage, f"exact duplicate: of {names[int(exact[index])]}", rejected)
                elif mark & _NEAR:
                    self._reject(passage, f"near-duplicate: of {names[int(near[index])]}", rejected)
                else:
                    self.account.add_out(passage["source"], len(passage["text"].encode()))
                    kept.write(self._with_own_id(line, seen) if mark & _REPEATED_ID else line)
        with open_output(self.target / "contamination.jsonl") as report:
            for shard in self.shards:
                report.write((shard / "contamination.jsonl").read_bytes())

    def _lines(self, rejected: IO[bytes]) -> Iterator[bytes]:
        """The lines of all passages; each shard's own rejections are copied before its passages."""
        for shard in progress(self.shards, description="merge", unit="file"):
            with open(shard / "rejected.jsonl", "rb") as own:
                shutil.copyfileobj(own, rejected)
            with open(shard / "passages.jsonl", "rb") as passages:
                yield from passages

    def _with_own_id(self, line: bytes, seen: Counter[str]) -> bytes:
        """The line with an id that no passage before has: files may number their records alike."""
        passage = json.loads(line)
        name = passage["id"]
        seen[name] += 1
        if seen[name] == 1:
            return line
        self.account.add_repairs({"repeated id": 1})
        return dump_line({**passage, "id": f"{name}~{seen[name]}"})

    def _reject(self, passage: dict[str, Any], reason: str, rejected: IO[bytes]) -> None:
        origin = passage["metadata"]["origin"]
        row = Rejected(passage["id"], reason, origin["file"], origin["line"], passage["source"])
        self.account.add_rejected(row)
        rejected.write(dump_line(row.to_record()))


def first_equal(keys: npt.NDArray[Any]) -> Indices:
    """For each passage the first one with the same text, int64 [N]. keys: KEY_DTYPE [N].

    >>> first_equal(np.array([(0, 7, 7), (1, 7, 8), (2, 7, 7)], [("id", "u8"), ("text_high", "u8"), ("text_low", "u8")])).tolist()
    [0, 1, 0]
    """
    order = np.lexsort((keys["text_low"], keys["text_high"]))  # stable: equal texts stay in order
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = (ordered["text_high"][1:] != ordered["text_high"][:-1]) | (
        ordered["text_low"][1:] != ordered["text_low"][:-1]
    )
    starts = np.flatnonzero(new)
    first = np.empty(len(keys), np.int64)
    first[order] = order[starts[np.cumsum(new) - 1]] if len(keys) else order
    return first


def _mark_passages(keys: npt.NDArray[Any], exact: Indices, near: Indices) -> npt.NDArray[np.uint8]:
    """What the merge must know of each passage, as bits, uint8 [N]. keys: KEY_DTYPE [N]; exact, near: int64 [N]."""
    marks = np.zeros(len(keys), np.uint8)
    for first, bit in ((exact, _EXACT), (near, _NEAR)):
        copies = np.flatnonzero(first != np.arange(len(first)))
        marks[copies] |= bit
        marks[first[copies]] |= _HAS_COPIES
    order = np.argsort(keys["id"])
    ids = keys["id"][order]
    repeats = ids[1:] == ids[:-1]
    marks[order[np.append(repeats, False) | np.append(False, repeats)] if len(ids) else order] |= _REPEATED_ID
    return marks
