"""Unification: documents to one directory of conversations.

Invariant: conversations.jsonl keeps the order of the documents whatever the concurrency and the executor; every document
is there, in rejected.jsonl with a reason, or counted as not reached. Work in progress lies in the hidden folder
.OUTPUT.work, under the fingerprint of inputs and settings; requests and replies lie in OUTPUT.requests.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from megatron_huatuo.config import at_least, one_of
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.execution import ExecutorSettings
from megatron_huatuo.llm.budget import load_prices, spent_usd
from megatron_huatuo.llm.endpoint_settings import EndpointSettings, PatienceSettings, load_request_options
from megatron_huatuo.llm.request_log import read_totals
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.jsonl import BadLines, describe_tolerated
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.manifest import check_replaceable, read_json
from megatron_huatuo.storage.records import LANGUAGES
from megatron_huatuo.unify.gates import Gates, QualitySettings
from megatron_huatuo.unify.input_documents import cut, cut_items, refuse_other_formats
from megatron_huatuo.unify.output_merge import KIND, publish
from megatron_huatuo.unify.output_preview import side_by_side
from megatron_huatuo.unify.run_job import Job, LiveFigures
from megatron_huatuo.unify.writers.writer import ENDPOINT_FAILED
from megatron_huatuo.unify.writers.writer_prompts import load_prompts
from megatron_huatuo.unify.writers.writer_replay import load_replay
from megatron_huatuo.unify.writers.writer_settings import CheckSettings, ModelOptions, SamplingSettings
from megatron_huatuo.unify.writers.writer_styles import load_styles, parse_weights

_WHOLE_FILE = 1 << 62  # lines


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
    request_options: str | None = None,
    styles: Sequence[str] = (),
    from_model: int = 0,
    seed: int = 0,
    preview: int = 0,
    pairs: bool = False,
    gate_pairs: bool = False,
    max_bad_lines: int = 0,
    documents_per_task: int = 20_000,
    quality: QualitySettings | None = None,
    sampling: SamplingSettings | None = None,
    patience: PatienceSettings | None = None,
    check: CheckSettings | None = None,
    execution: ExecutorSettings | None = None,
) -> dict[str, Any]:
    """Write `output`: conversations.jsonl, rejected.jsonl, ledger.json, report.json, manifest.json; returns the report.

    inputs: files of Document records; with `pairs`, of question-answer pairs, dialogues and queries in published layouts.
    backend: "template" (no model, offline) or "openai" (any OpenAI-compatible endpoint: base_url and model needed).
    api_key_env: name of the environment variable with the API key.
    language: of questions and answers, "zh" or "en"; by default each passage's own. Templates do not translate: they
    reject passages in another language.
    max_concurrency: requests in flight in each task.
    budget_usd: the run stops cleanly before it could spend more, over all runs and tasks of this output; needs `prices`.
    prices, prompts, request_options: YAML files, see docs/corpus_and_unification.md.
    styles: names of styles, or NAME=WEIGHT; one is drawn for each passage by `seed` (default: question-answer alone).
    from_model: instead of inputs, so many conversations of general content that the model writes of itself, for replay.
    preview: print so many pairs beside their passages and write no output; what is paid for stays paid for.
    gate_pairs: pairs that are taken over must pass the gates too. Queries are answered by the backend.
    documents_per_task: files are cut into tasks of so many lines; with `pairs` each file is one task.
    execution: local processes by default. Under SLURM the tasks are submitted and the report is {"state": "submitted"}:
    the same call, once they are done, finishes the work.
    Requests and replies are kept in OUTPUT.requests: a run that was killed goes on where it was.
    Raises: ConfigError; DataError for a bad line beyond `max_bad_lines` or when no pair is left; EndpointError when the
    endpoint refuses or fails for good.
    """
    at_least("--documents-per-task", documents_per_task, 1)
    at_least("--preview", preview, 0)
    if language is not None:
        one_of("--language", language, LANGUAGES)
    at_least("--from-model", from_model, 0)
    files = [os.fspath(path) for path in inputs]
    if not from_model and not files:
        raise ConfigError("nothing to unify: need --input FILE, or --from-model N.")
    if from_model and (pairs or styles or files):
        raise ConfigError(
            "--from-model writes text of itself: --input, --pairs and --styles have no effect. Leave them out."
        )
    if pairs and styles:
        raise ConfigError("--styles has no effect with --pairs: styles are for passages. Leave one out.")
    model_options = _choose_model(
        backend, language, base_url, model, max_concurrency, patience or PatienceSettings(), sampling or SamplingSettings(),
        api_key_env=api_key_env, budget_usd=budget_usd, prices=prices, prompts=list(prompts) or None,
        request_options=request_options, styles=list(styles) or None, from_model=from_model or None, seed=seed or None,
        check_model=check if check and check.check_model else None,
    )  # fmt: skip
    if not pairs:
        refuse_other_formats(files)
    shards = [shard for path in files for shard in cut(path, _WHOLE_FILE if pairs else documents_per_task)]
    shards += cut_items(from_model, documents_per_task)
    target = Path(output)
    with exclusive(target):
        check_replaceable(target, KIND)
        job = Job(
            shards=tuple(shards),
            root=target.with_name(f".{target.name}.work"),
            requests=target.with_name(f"{target.name}.requests"),
            quality=quality or QualitySettings(),
            model=model_options,
            language=language,
            max_concurrency=max_concurrency,
            pairs=pairs,
            gate_pairs=gate_pairs,
            max_bad_lines=max_bad_lines,
        )
        _prepare_requests(job)
        if preview:
            return asyncio.run(_preview(job, preview))
        if not _run_tasks(job, execution or ExecutorSettings()):
            get_logger(__name__).info("tasks are submitted; run the same command when they are done (%s)", job.work)
            return {"state": "submitted", "work": str(job.work)}
        report = publish(job, files, target)
        if report["state"] == "complete":
            shutil.rmtree(job.root, ignore_errors=True)
    _summarise(report, target)
    return report


def _summarise(report: dict[str, Any], target: Path) -> None:
    logger = get_logger(__name__)
    logger.info(
        "unified %d documents into %d pairs (%d rejected, %d bad lines, %d not reached): %s",
        report["documents"], report["pairs"], report["rejected"], sum(report["bad_lines"].values()),
        report["not_reached"], target,
    )  # fmt: skip
    if report["tolerated"]:
        logger.warning("beside these: %s", describe_tolerated(report["tolerated"]))
    if failed := report["rejected_by_reason"].get(ENDPOINT_FAILED):
        when = "" if report["state"] == "complete" else ", once the output is complete"
        logger.warning(
            "%d documents failed at the endpoint; the same command again asks for them alone%s", failed, when
        )


def _choose_model(
    backend: str,
    language: str | None,
    base_url: str | None,
    model: str | None,
    max_concurrency: int,
    patience: PatienceSettings,
    sampling: SamplingSettings,
    **options: Any,
) -> ModelOptions | None:
    """What is asked; None for the template backend, which refuses all that it would ignore."""
    one_of("--backend", backend, ("template", "openai"))
    if backend == "template":
        given = {"base_url": base_url, "model": model, **options}
        if found := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
            raise ConfigError(f"{', '.join(found)} has no effect with the template backend. Leave it out.")
        return None
    if not base_url or not model:
        raise ConfigError("the openai backend needs --base-url and --model.")
    request_options = load_request_options(options.pop("request_options"))
    endpoint = EndpointSettings(base_url, model, max_concurrency, patience, request_options)
    prompt_files = options.pop("prompts") or []
    options["prompts"] = load_prompts(prompt_files)
    options["style_prompts"] = load_styles(options["prompts"], prompt_files)
    options["styles"] = parse_weights(options["styles"] or [], options["style_prompts"], language)
    options["replay"] = load_replay(prompt_files) if options.pop("from_model") else {}
    options["seed"] = options["seed"] or 0
    options["prices"] = load_prices(options["prices"]) if options["prices"] else None
    options["check"] = options.pop("check_model") or CheckSettings()
    return ModelOptions(endpoint, sampling, language=language, **options)


def _prepare_requests(job: Job) -> None:
    """Gather what earlier runs asked and spent. Raises DataError while a task of this output is at work."""
    if job.model is not None:
        totals, _ = read_totals(job.requests)
        if shared := job.model.shared_budget(job.requests):
            shared.start(spent_usd(job.model.prices, totals))


async def _preview(job: Job, number: int) -> dict[str, Any]:
    """Print the first results; returns what they cost."""
    # datatrove takes half a second to import.
    from megatron_huatuo.unify.run_shard import Unifier

    tasks = chain.from_iterable(job.read(rank, BadLines(job.max_bad_lines)) for rank in range(len(job.shards)))
    async with job.open_backend(0) as backend:
        run = Unifier(backend, Gates(job.quality), job.max_concurrency, job.gate_pairs)
        for task in islice(tasks, number):
            print(side_by_side(task, (await run.outcome(task)).result), flush=True)
        return {"previewed": number, "usage": backend.usage()}


def _run_tasks(job: Job, execution: ExecutorSettings) -> bool:
    """Run what is not done, or was stopped by another budget; whether all is done now."""
    # datatrove takes half a second to import.
    from megatron_huatuo.execution.executors import run_tasks
    from megatron_huatuo.unify.run_shard import UnifyShard

    def is_done(rank: int) -> bool:
        path = job.shard_path(rank) / "shard.json"
        content = read_json(path) if path.exists() else None
        return content is not None and not (content["stopped"] and content["budget_usd"] != job.budget_usd)

    figures = None if job.model is None else LiveFigures(job, job.model)
    return run_tasks(
        "unify",
        lambda show: [UnifyShard(job, show)],
        len(job.shards),
        job.work / "datatrove",
        execution,
        is_done=is_done,
        figures=figures,
    )
