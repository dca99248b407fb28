"""Curation: raw files to one directory of clean passages.

Invariant: documents.jsonl keeps the order of the input; every document read is there or in rejected.jsonl. Work in
progress lies in the hidden folder .OUTPUT.work beside it, under the fingerprint of inputs and settings, and is never mixed
with that of others; a failed run leaves it, and the next one goes on from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.corpus.curation_settings import CurationSettings
from megatron_huatuo.corpus.lexicon import STARTER, Lexicon
from megatron_huatuo.corpus.passage_score import describe_model
from megatron_huatuo.corpus.readers.read_files import expand_inputs
from megatron_huatuo.errors import DataError
from megatron_huatuo.execution import ExecutorSettings
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.jsonl import describe_tolerated
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.manifest import (
    check_replaceable,
    fingerprint_work,
    sha256_file,
    write_json,
    write_manifest,
)

if TYPE_CHECKING:
    from megatron_huatuo.corpus.band_search import BandSearch

KIND = "corpus"
_FILES = ("documents.jsonl", "rejected.jsonl", "contamination.jsonl", "report.json", "report.png", "rates.json")


def curate(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: CurationSettings | None = None,
    execution: ExecutorSettings | None = None,
) -> dict[str, Any]:
    """Write `output`: documents.jsonl, rejected.jsonl, report.json, manifest.json and more; returns the report.

    inputs: files or glob patterns: JSON Lines, JSON, CSV, Parquet, XML of PubMed, JATS, BITS and MedQuAD, plain text.
    execution: local processes by default. Under SLURM the tasks are submitted and the report is {"state": "submitted"}:
    the same call, once they are done, finishes the work.
    Raises: ConfigError; DataError for a bad line beyond `max_bad_lines`, or when nothing is left.
    """
    # datatrove takes half a second to import.
    from megatron_huatuo.corpus.band_search import BandSearch
    from megatron_huatuo.corpus.shard_files import ShardWriter, shard_path
    from megatron_huatuo.corpus.steps import build_pipeline

    settings, execution = settings or CurationSettings(), execution or ExecutorSettings()
    files = expand_inputs(inputs)
    target = Path(output)
    root = target.with_name(f".{target.name}.work")
    decisive = _describe(settings)
    with exclusive(target):
        check_replaceable(target, KIND)
        work = root / fingerprint_work(files, decisive)
        shard = ShardWriter(str(work), with_signatures=settings.near_duplicate_similarity <= 1)
        shards = [shard_path(work, rank) for rank in range(len(files))]
        search = BandSearch(shards, work / "pairs", settings.near_duplicate_similarity)
        is_done = _run_tasks(shards, work, partial(build_pipeline, files, shard, settings), execution)
        if not (is_done and search.run_tasks(execution)):
            get_logger(__name__).info("tasks are submitted; run the same command when they are done (%s)", work)
            return {"state": "submitted", "work": str(work)}
        report = _merge(shards, search, files, target, decisive, settings.max_bad_lines)
        shutil.rmtree(root, ignore_errors=True)
    get_logger(__name__).info(
        "curated %d documents into %d passages (%d rejected): %s",
        report["documents_in"], report["documents_out"], report["rejected"], target,
    )  # fmt: skip
    if report["tolerated"]:
        get_logger(__name__).warning("beside these: %s", describe_tolerated(report["tolerated"]))
    return report


def _describe(settings: CurationSettings) -> dict[str, Any]:
    """What decides the result, files by their hashes. Raises ConfigError for a lexicon that cannot be read."""
    plain = to_plain(settings)
    del plain["max_bad_lines"]
    source, lexicon, exams = plain.pop("source"), plain.pop("lexicon"), plain.pop("exam")
    plain["score_model"] = describe_model(settings.score_model)
    if lexicon is not None:
        Lexicon.load(lexicon)
        lexicon = sha256_file(STARTER if lexicon == "starter" else lexicon)
    return {
        "settings": plain, "source": source, "lexicon": lexicon, "exams": {path: sha256_file(path) for path in exams}
    }  # fmt: skip


def _run_tasks(
    shards: list[Path], work: Path, make_pipeline: Callable[[bool], list[Any]], execution: ExecutorSettings
) -> bool:
    """Run what is not done; whether all is done now."""
    from megatron_huatuo.execution.executors import run_tasks

    return run_tasks(
        "curate",
        make_pipeline,
        len(shards),
        work / "datatrove",
        execution,
        is_done=lambda rank: (shards[rank] / "shard.json").exists(),
    )


def _merge(
    shards: list[Path],
    search: BandSearch,
    files: list[str],
    target: Path,
    decisive: dict[str, Any],
    max_bad_lines: int,
) -> dict[str, Any]:
    from megatron_huatuo.corpus.account import draw_report
    from megatron_huatuo.corpus.merge_shards import CorpusMerge

    with atomic_directory(target, replace=True) as directory:
        merge = CorpusMerge(shards, directory, max_bad_lines)
        merge.write(search)
        report = {**merge.account.report(), "tolerated": merge.tolerated()}
        if not report["documents_out"]:
            raise DataError(_nothing_left(report, files))
        write_json(directory / "report.json", report)
        write_json(directory / "rates.json", merge.account.rates())
        draw_report(report, directory / "report.png")
        write_manifest(directory, KIND, {"inputs": merge.inputs(), **decisive}, _FILES)
    return report


_ADVICE = {
    "not medical": "Give another --lexicon, or lower --min-density-zh and --min-density-en",
    "language": "Check `language` of the records: texts must be Chinese or English, and what they say",
    "too short": "Lower --min-characters-zh or --min-words-en",
    "mostly symbols": "Lower --min-letter-share",
    "damaged text": "Look at the encoding of the files",
    "blank text": "Check that the text stands under `text`",
    "low score": "Lower --min-score; --preview-scores 5 shows what it drops",
    "contamination": "Keep them with --contamination-action report, or take the exam out",
}


def _nothing_left(report: dict[str, Any], files: list[str]) -> str:
    """Why no passage is left: the reason that dominated, and what to do about it."""
    start = f"nothing left: {report['documents_in']} documents in, none out"
    where = ", ".join(files[:3])
    reasons = report["rejected_by_reason"]
    if not reasons:
        told = describe_tolerated(report["tolerated"]) or "the files are empty"
        return f"{start}: {told} ({where}). Check the input."
    name = max(reasons, key=lambda reason: int(reasons[reason]))
    others = {reason: number for reason, number in reasons.items() if reason != name}
    return (
        f"{start}: {reasons[name]} of {report['rejected']} were rejected for {name!r}{f', others: {others}' if others else ''} "
        f"({where}). {_ADVICE.get(name, 'Check the input and the settings')}."
    )
