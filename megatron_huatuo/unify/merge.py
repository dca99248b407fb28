"""Shards to one output: near-duplicate pairs over all of them removed, order kept.

Invariant: what is written depends on the shards alone, not on which worker wrote them when; of nearly equal pairs the
first in input order stays.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron_huatuo.log import progress
from megatron_huatuo.storage.jsonl import BadLines, dump_line
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.storage.records import Conversation, parse_conversations
from megatron_huatuo.text.minhash import first_of_group_in_files
from megatron_huatuo.unify.backend import Refusal
from megatron_huatuo.unify.job import Job
from megatron_huatuo.unify.report import UnificationReport


class Merge:
    """The merge of all shards of a job into the directory `target`."""

    def __init__(self, job: Job, target: Path) -> None:
        """Raises DataError when the shards together have too many bad lines."""
        self.target = target
        self.folders = [job.shard_path(rank) for rank in range(len(job.shards))]
        self.contents = [read_json(folder / "shard.json") for folder in self.folders]
        self.report = UnificationReport()
        self.bad_lines = BadLines(job.max_bad_lines)
        for content in self.contents:
            self.report.merge(content["report"])
            self.bad_lines.tolerated.update(content["tolerated"])
            for bad in content["bad_lines"]:
                self.bad_lines.add(*bad)
        self.stopped = next((content["stopped"] for content in self.contents if content["stopped"]), None)

    def write(self, near_duplicate_similarity: float) -> None:
        """Write conversations.jsonl and rejected.jsonl."""
        signatures = (folder / "signatures.bin" for folder in self.folders)
        first = first_of_group_in_files(signatures, near_duplicate_similarity, self.target / "signatures.tmp")
        ids = {int(number): "" for number in np.unique(first[first != np.arange(len(first))])}
        with (
            open(self.target / "conversations.jsonl", "wb") as kept,
            open(self.target / "rejected.jsonl", "wb") as rejected,
        ):
            for folder in self.folders:
                with open(folder / "rejected.jsonl", "rb") as own:
                    shutil.copyfileobj(own, rejected)
            for index, line in enumerate(self._lines()):
                if index in ids:
                    ids[index] = _parse(line).id
                if first[index] == index:
                    kept.write(line)
                else:
                    self._reject(_parse(line), ids[int(first[index])], rejected)
            for bad in self.bad_lines.lines:
                rejected.write(dump_line({"id": None, "reason": bad.reason, "file": bad.file, "line": bad.line}))

    def _lines(self) -> Iterator[bytes]:
        """The lines of all conversations, in order."""
        for folder in progress(self.folders, description="merge", unit="shard"):
            with open(folder / "conversations.jsonl", "rb") as conversations:
                yield from conversations

    def _reject(self, conversation: Conversation, first_id: str, rejected: IO[bytes]) -> None:
        question, answer = conversation.turns[0].value, conversation.turns[-1].value
        refusal = Refusal(f"near-duplicate pair: of {first_id}", question, answer)
        rejected.write(dump_line(self.report.move_to_refused(conversation, refusal)))

    def to_report(self) -> dict[str, Any]:
        """The content of `report.json`."""
        report = self.report.to_record(self.bad_lines)
        report["state"] = "stopped: budget" if self.stopped else "complete"
        return report


def _parse(line: bytes) -> Conversation:
    return parse_conversations(json.loads(line), "a shard")[0]
