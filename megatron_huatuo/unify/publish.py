"""Finished shards to the output: pairs and refusals, what they cost, the report, and last the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.manifest import describe_files, write_json, write_manifest
from megatron_huatuo.unify.job import Job
from megatron_huatuo.unify.merge import Merge

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
            raise DataError(
                f"nothing left: {report['documents']} documents in, no pair out; {merge.stopped or ''} "
                f"rejected: {report['rejected_by_reason']}. Check the input and the settings."
            )
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


def _ledger(job: Job, merge: Merge) -> dict[str, Any]:
    if job.model is None:
        return {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0}
    # openai takes half a second to import, and only this backend needs it.
    from megatron_huatuo.unify.ledger import ledger

    return ledger(job.model, job.requests, (content["usage"] for content in merge.contents))
