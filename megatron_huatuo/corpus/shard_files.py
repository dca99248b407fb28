"""What one task leaves for the merge: passages, rejections, text keys, signatures and its account.

Invariant: a shard directory is published whole or not at all, so a task that was killed is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megatron_huatuo.corpus.account import Account, Item, Rejected
from megatron_huatuo.corpus.contamination import Hit
from megatron_huatuo.storage.atomic import open_output, private_directory
from megatron_huatuo.storage.jsonl import BadLines, dump_line
from megatron_huatuo.storage.manifest import sha256_file, write_json
from megatron_huatuo.storage.records import Document
from megatron_huatuo.text.minhash import signature
from megatron_huatuo.text.near_duplicates import SIGNATURES, write_band_keys

KEY_DTYPE = np.dtype([("id", "<u8"), ("text_high", "<u8"), ("text_low", "<u8")])
_FILES = ("passages.jsonl", "rejected.jsonl", "contamination.jsonl", "keys.bin", SIGNATURES)


class ShardWriter:
    """The output of one task below `folder`; with_signatures: near-duplicates will be looked for."""

    def __init__(self, folder: str, with_signatures: bool) -> None:
        self.folder, self.with_signatures = folder, with_signatures
        self.account = Account()
        self._handles: dict[str, IO[bytes]] = {}
        self._private = Path(folder)

    def open(self, rank: int, path: str, bad_lines: BadLines) -> None:
        """Start the shard of task `rank`, which reads `path`."""
        self._target = shard_path(self.folder, rank)
        self._lifetime = contextlib.ExitStack()
        self._private = self._lifetime.enter_context(private_directory(self._target, "tmp"))
        self._input, self._bad_lines = path, bad_lines
        self._handles = {name: open_output(self._private / name) for name in _FILES}
        self.account = Account()

    def write(self, passage: Document) -> None:
        """Add a passage."""
        self._handles["passages.jsonl"].write(dump_line(passage.to_record()))
        self._handles["keys.bin"].write(make_key(passage).tobytes())
        if self.with_signatures:
            self._handles[SIGNATURES].write(signature(passage.text).tobytes())

    def reject(self, rejected: Rejected) -> None:
        """Add a rejection."""
        self.account.add_rejected(rejected)
        self._handles["rejected.jsonl"].write(dump_line(rejected.to_record()))

    def add_hit(self, item: Item, hit: Hit, *, dropped: bool) -> None:
        """Add a line to the contamination report."""
        record = {"id": item.document.id, "question": hit.question, "shared": hit.text, "dropped": dropped}
        self._handles["contamination.jsonl"].write(dump_line({**record, "file": item.file, "line": item.line}))

    def publish(self) -> None:
        """Count the bad lines and give the shard its final name."""
        for bad in self._bad_lines.lines:
            self.reject(Rejected(None, bad.reason, bad.file, bad.line))
        self._close()
        if self.with_signatures:
            write_band_keys(self._private)
        content: dict[str, Any] = {
            "input": {"path": self._input, "bytes": os.path.getsize(self._input), "sha256": sha256_file(self._input)},
            "bad_lines": len(self._bad_lines.lines),
            "tolerated": dict(self._bad_lines.tolerated),
            "account": self.account.to_record(),
        }
        write_json(self._private / "shard.json", content)
        shutil.rmtree(self._target, ignore_errors=True)
        self._private.rename(self._target)
        self._lifetime.close()

    def discard(self, error: BaseException) -> None:
        """Delete a shard that an error left unfinished, and let the error name files by their final place."""
        if not self._handles:
            return
        with contextlib.suppress(OSError):  # a full disk was told already, by the error
            self._close()
        with contextlib.suppress(type(error)):
            self._lifetime.__exit__(type(error), error, error.__traceback__)

    def _close(self) -> None:
        for handle in self._handles.values():
            handle.close()


def shard_path(folder: str | os.PathLike[str], rank: int) -> Path:
    """Directory of the shard of task `rank`."""
    return Path(folder) / "shards" / f"{rank:05d}"


def make_key(passage: Document) -> npt.NDArray[Any]:
    """Hashes of id and text, one KEY_DTYPE. The text's is equal for texts that differ in white space only."""
    text = hashlib.blake2b("".join(passage.text.split()).encode(), digest_size=16).digest()
    name = hashlib.blake2b(passage.id.encode(), digest_size=8).digest()
    return np.frombuffer(name + text, KEY_DTYPE)


def read_keys(folder: Path) -> npt.NDArray[Any]:
    """Keys of a shard, KEY_DTYPE [passages]."""
    return np.fromfile(folder / "keys.bin", KEY_DTYPE)
