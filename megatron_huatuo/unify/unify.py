"""Unification: documents to one directory of conversations.

Invariant: conversations.jsonl keeps the order of the documents whatever the concurrency; every document is there, in
rejected.jsonl with a reason, or counted as not reached.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.jsonl import BadLines, dump_line
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.manifest import check_replaceable, describe_files, write_json, write_manifest
from megatron_huatuo.unify.gates import Gates
from megatron_huatuo.unify.layouts import read_pairs
from megatron_huatuo.unify.preview import side_by_side
from megatron_huatuo.unify.reading import count_lines, read_documents
from megatron_huatuo.unify.run import Run
from megatron_huatuo.unify.settings import EndpointSettings, PatienceSettings, QualitySettings, SamplingSettings
from megatron_huatuo.unify.task import Task
from megatron_huatuo.unify.template import TemplateBackend

KIND = "unified"
_FILES = ("conversations.jsonl", "rejected.jsonl", "ledger.json", "report.json")


def unify(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    backend: str = "template",
    base_url: str | None = None,
    model: str | None = None,
    api_key_env: str | None = None,
    language: str | None = None,
    max_concurrency: int = 64,
    budget_usd: float | None = None,
    prices: str | None = None,
    prompts: Sequence[str] = (),
    preview: int = 0,
    pairs: bool = False,
    gate_pairs: bool = False,
    max_bad_lines: int = 0,
    quality: QualitySettings | None = None,
    sampling: SamplingSettings | None = None,
    patience: PatienceSettings | None = None,
) -> dict[str, Any]:
    """Write `output`: conversations.jsonl, rejected.jsonl, ledger.json, report.json, manifest.json; returns the report.

    inputs: files of Document records; with `pairs`, of question-answer pairs, dialogues and queries in published layouts.
    backend: "template" (no model, offline) or "openai" (any OpenAI-compatible endpoint: base_url and model needed).
    api_key_env: name of the environment variable with the API key.
    language: of questions and answers, "zh" or "en"; by default each passage's own.
    budget_usd: the run stops cleanly before it could spend more, over all runs on this output; needs `prices`.
    prices, prompts: YAML files, see docs/corpus_and_unification.md.
    preview: print so many pairs beside their passages and write no output; what is paid for stays paid for.
    gate_pairs: pairs that are taken over must pass the gates too. Queries are answered by the backend.
    Requests and replies are kept in OUTPUT.requests.sqlite: a run that was killed goes on where it was.
    Raises: ConfigError; DataError for a bad line beyond `max_bad_lines` or when no pair is left; EndpointError when the
    endpoint refuses or fails for good.
    """
    files = [os.fspath(path) for path in inputs]
    gates = Gates(quality or QualitySettings())
    target = Path(output)
    with exclusive(target):
        check_replaceable(target, KIND)
        if backend == "template":
            ignored = {
                "--base-url": base_url,
                "--model": model,
                "--api-key-env": api_key_env,
                "--language": language,
                "--budget-usd": budget_usd,
                "--prices": prices,
                "--prompts": prompts or None,
            }
            if found := [flag for flag, value in ignored.items() if value is not None]:
                raise ConfigError(f"{', '.join(found)} has no effect with the template backend. Leave it out.")
            run = Run(TemplateBackend(), gates, max_concurrency, gate_pairs)
            return _run(run, files, target, pairs, preview, max_bad_lines)
        if backend != "openai":
            raise ConfigError(f"unknown backend: got {backend!r}, need 'template' or 'openai'.")
        if not base_url or not model:
            raise ConfigError("the openai backend needs --base-url and --model.")
        # openai takes half a second to import, and only this backend needs it.
        from megatron_huatuo.unify.model import ModelBackend, read_api_key
        from megatron_huatuo.unify.prices import load_prices
        from megatron_huatuo.unify.prompt import load_prompts
        from megatron_huatuo.unify.request_log import RequestLog

        endpoint = EndpointSettings(base_url, model, max_concurrency, patience or PatienceSettings())
        log = RequestLog(target.with_name(f"{target.name}.requests.sqlite"))
        try:
            asker = ModelBackend(
                endpoint,
                sampling or SamplingSettings(),
                load_prompts(list(prompts)),
                log,
                language=language,
                api_key=read_api_key(api_key_env),
                prices=load_prices(prices) if prices else None,
                budget_usd=budget_usd,
            )
            run = Run(asker, gates, max_concurrency, gate_pairs)
            return _run(run, files, target, pairs, preview, max_bad_lines)
        finally:
            log.close()


def _run(run: Run, files: list[str], target: Path, pairs: bool, preview: int, max_bad_lines: int) -> dict[str, Any]:
    bad_lines = BadLines(max_bad_lines)
    tasks = read_pairs(files, bad_lines) if pairs else read_documents(files, bad_lines)
    if preview:
        return asyncio.run(_preview(run, tasks, preview))
    with atomic_directory(target, replace=True) as directory:
        asyncio.run(_write(run, tasks, directory, count_lines(files)))
        if not pairs or run.gate_pairs:
            run.drop_near_duplicates(directory, run.gates.settings.near_duplicate_similarity)
        with open(directory / "rejected.jsonl", "ab") as rejected:
            for bad in bad_lines.lines:
                rejected.write(dump_line({"id": None, "reason": bad.reason, "file": bad.file, "line": bad.line}))
        report = run.report.to_record(bad_lines)
        report["state"] = "stopped: budget" if run.stopped else "complete"
        if not report["pairs"]:
            raise DataError(
                f"nothing left: {report['documents']} documents in, no pair out; {run.stopped or ''} "
                f"rejected: {report['rejected_by_reason']}. Check the input and the settings."
            )
        write_json(directory / "report.json", report)
        write_json(directory / "ledger.json", run.backend.ledger())
        content = {
            "inputs": {path: describe_files(Path(), [path])[path] for path in files},
            "backend": run.backend.describe(),
            "quality": to_plain(run.gates.settings),
            "complete": run.stopped is None,
        }
        write_manifest(directory, KIND, content, _FILES)
    get_logger(__name__).info(
        "unified %d documents into %d pairs (%d rejected, %d not reached): %s",
        report["documents"], report["pairs"], report["rejected"], report["not_reached"], target,
    )  # fmt: skip
    return report


async def _write(run: Run, tasks: Iterable[Task], directory: Path, total: int) -> None:
    try:
        await run.write(tasks, directory, total or None)
    finally:
        await run.backend.close()


async def _preview(run: Run, tasks: Iterable[Task], number: int) -> dict[str, Any]:
    """Print the first results; returns what they cost."""
    try:
        for task in islice(tasks, number):
            print(side_by_side(task, await run.outcome(task)), flush=True)
    finally:
        await run.backend.close()
    return {"previewed": number, "ledger": run.backend.ledger()}
