"""Finished shards to one output: near-duplicate pairs over all of them removed, order kept, the manifest last.

Invariant: what is written depends on the shards alone, not on which worker wrote them when; of nearly equal pairs the
first in input order stays.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import DataError
from megatron_huatuo.llm.budget import spent_usd
from megatron_huatuo.llm.request_log import read_totals
from megatron_huatuo.log import progress
from megatron_huatuo.storage.atomic import atomic_directory, open_output
from megatron_huatuo.storage.jsonl import BadLines, dump_line
from megatron_huatuo.storage.manifest import describe_files, read_json, write_json, write_manifest
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.records import Conversation
from megatron_huatuo.text.near_duplicates import Groups, SignatureFiles, group_near_duplicates
from megatron_huatuo.unify.output_report import UnificationReport
from megatron_huatuo.unify.run_job import Job
from megatron_huatuo.unify.writers.writer import ENDPOINT_FAILED, Refusal
from megatron_huatuo.unify.writers.writer_settings import ModelOptions

KIND = "unified"
_FILES = ("conversations.jsonl", "rejected.jsonl", "ledger.json", "report.json")
_OFF = 2.0  # no two texts are so similar


def publish(job: Job, files: list[str], target: Path) -> dict[str, Any]:
    """Merge all shards of the job, made from `files`, into `target`; returns the report.

    Raises: DataError when no pair is left, or the shards together have too many bad lines.
    """
    with atomic_directory(target, replace=True) as directory:
        merge = Merge(job, directory)
        # Taken-over pairs stay as they are unless the gates are asked for.
        merge.write(_OFF if job.pairs and not job.gate_pairs else job.quality.near_duplicate_similarity)
        report = merge.to_report()
        if not report["pairs"]:
            merge.forget_failed()
            raise DataError(_nothing_left(report, merge.stopped))
        write_json(directory / "report.json", report)
        write_json(directory / "ledger.json", _ledger(job, merge))
        content = {
            "inputs": {path: describe_files(Path(), [path])[path] for path in files},
            "backend": job.describe_backend(),
            "quality": to_plain(job.quality),
            "complete": merge.stopped is None,
        }
        write_manifest(directory, KIND, content, _FILES)
    return report


_ADVICE = {
    ENDPOINT_FAILED: "Check the endpoint and run the same command again: it asks for them alone",
    "content filter": "Ask another model, or take these passages out",
    "cut off": "Raise --max-answer-tokens, or keep the model from thinking with --request-options",
    "thoughts": "Raise --max-answer-tokens, or keep the model from thinking with --request-options",
    "wrong language of the question": "Give --language, or check `language` of the documents",
    "wrong language of the answer": "Give --language, or check `language` of the documents",
}


def _nothing_left(report: Mapping[str, Any], stopped: str | None) -> str:
    """Why there is no pair: the reason that dominated, with its first case."""
    documents, reasons = report["documents"], report["rejected_by_reason"]
    start = f"nothing left: {documents} documents in, no pair out"
    if stopped:
        return f"{start}: {stopped}"
    if not reasons:
        return f"{start}; bad lines: {report['bad_lines'] or 'none'}. Check the input."
    name = max(reasons, key=lambda reason: int(reasons[reason]))
    first = report["examples"][name][0]["reason"]
    advice = _ADVICE.get(
        name, "Look at some with --preview 5; check the input, the prompts and the limits of the gates"
    )
    return (
        f"{start}. {reasons[name]} of {documents} were rejected for {name!r}, the first with {first!r}; "
        f"all reasons: {reasons}. {advice}."
    )


class Merge:
    """The merge of all shards of a job into the directory `target`."""

    def __init__(self, job: Job, target: Path) -> None:
        """Raises DataError when the shards together have too many bad lines."""
        self.target = target
        self.prices = None if job.model is None else job.model.prices
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
        files = SignatureFiles(self.folders)
        is_off = near_duplicate_similarity > 1
        first = (Groups(len(files)) if is_off else group_near_duplicates(files, near_duplicate_similarity)).first
        ids = {int(number): "" for number in np.unique(first[first != np.arange(len(first))])}
        with (
            open_output(self.target / "conversations.jsonl") as kept,
            open_output(self.target / "rejected.jsonl") as rejected,
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

    def forget_failed(self) -> None:
        """Take back the shards in which requests failed, so that the next run does them again."""
        for folder, content in zip(self.folders, self.contents, strict=True):
            if any(ENDPOINT_FAILED in reasons for reasons in content["report"]["rejected"].values()):
                shutil.rmtree(folder, ignore_errors=True)

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
        report = self.report.to_record(self.bad_lines, self.prices)
        report["state"] = "stopped: budget" if self.stopped else "complete"
        return report


def _parse(line: bytes) -> Conversation:
    return parse_conversations(json.loads(line), "a shard")[0]


def _ledger(job: Job, merge: Merge) -> dict[str, Any]:
    if job.model is None:
        return {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0}
    described = ledger(job.model, job.requests, (content["usage"] for content in merge.contents))
    return {**described, "by_style": merge.report.by_style(merge.prices)}


def ledger(options: ModelOptions, requests: Path, usages: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """The content of `ledger.json`. usages: of the tasks that made the present output."""
    totals, failures = read_totals(requests)
    this_run: Counter[str] = sum((Counter(usage) for usage in usages), Counter())
    return {
        "requests": sum(row.replies for row in totals),
        "prompt_tokens": sum(row.prompt_tokens for row in totals),
        "completion_tokens": sum(row.completion_tokens for row in totals),
        "cost_usd": spent_usd(options.prices, totals) if options.prices else None,
        "replies_with_estimated_tokens": sum(row.uncounted for row in totals),
        "replies_unread": sum(row.unread for row in totals),
        "requests_without_reply": sum(row.unanswered for row in totals),
        "failed_tries": failures,
        "by_model": {
            row.model: {name: value for name, value in row._asdict().items() if name != "unread"} for row in totals
        },
        "prices": {model: vars(price) for model, price in sorted((options.prices or {}).items())},
        "budget_usd": options.budget_usd,
        "this_run": {
            **{name: int(this_run[name]) for name in ("requests", "retries", "replies_from_log")},
            "task_time_s": round(this_run["task_time_s"], 3),
        },
    }
