"""Unification: documents to one directory of conversations.

Invariant: conversations.jsonl keeps the order of the documents whatever the concurrency; every document is there or in
rejected.jsonl with a reason.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import DataError
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.jsonl import BadLines, dump_line, read_records
from megatron_huatuo.storage.manifest import describe_files, write_json, write_manifest
from megatron_huatuo.storage.records import Conversation, Document, Turn, parse_document
from megatron_huatuo.unify.backend import Backend, Pair, Refusal
from megatron_huatuo.unify.gates import refuse_pair
from megatron_huatuo.unify.ordered import ordered_map
from megatron_huatuo.unify.report import UnificationReport
from megatron_huatuo.unify.settings import UnificationSettings
from megatron_huatuo.unify.template import TemplateBackend

KIND = "unified"


def unify(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    backend: Backend | None = None,
    settings: UnificationSettings | None = None,
    max_concurrency: int = 64,
    max_bad_lines: int = 0,
) -> dict[str, Any]:
    """Write `output`: conversations.jsonl, rejected.jsonl, ledger.json, report.json, manifest.json; returns the report.

    inputs: files of Document records. backend: the template backend by default.
    Raises: DataError for a bad line beyond `max_bad_lines`, or when no pair is left.
    """
    settings, backend = settings or UnificationSettings(), backend or TemplateBackend()
    files = [os.fspath(path) for path in inputs]
    bad_lines = BadLines(max_bad_lines)
    report = UnificationReport()
    with atomic_directory(output, replace=True) as directory:
        asyncio.run(_write(directory, files, backend, settings, max_concurrency, bad_lines, report))
        content = report.to_record(bad_lines)
        if not content["pairs"]:
            raise DataError(
                f"nothing left: {content['documents']} documents in, no pair out; "
                f"rejected: {content['rejected_by_reason']}. Check the input and the settings."
            )
        write_json(directory / "report.json", content)
        write_json(directory / "ledger.json", backend.ledger())
        write_manifest(
            directory,
            KIND,
            {
                "inputs": {path: describe_files(Path(), [path])[path] for path in files},
                "backend": backend.describe(),
                "settings": to_plain(settings),
            },
            ["conversations.jsonl", "rejected.jsonl", "ledger.json", "report.json"],
        )
    get_logger(__name__).info(
        "unified %d documents into %d pairs (%d rejected): %s",
        content["documents"], content["pairs"], content["rejected"], output,
    )  # fmt: skip
    return content


async def _write(
    directory: Path,
    files: list[str],
    backend: Backend,
    settings: UnificationSettings,
    max_concurrency: int,
    bad_lines: BadLines,
    report: UnificationReport,
) -> None:
    documents = (document for path in files for document in _read(path, bad_lines))
    try:
        with (
            open(directory / "conversations.jsonl", "wb") as kept,
            open(directory / "rejected.jsonl", "wb") as rejected,
        ):
            with progress(description="unify", unit="doc") as bar:
                async for document, result in ordered_map(backend.rewrite, documents, max_concurrency):
                    bar.update()
                    outcome = _judge(document, result, settings)
                    report.add(document, outcome)
                    if isinstance(outcome, Pair):
                        kept.write(dump_line(_to_conversation(document, outcome).to_record()))
                    else:
                        rejected.write(dump_line(report.rejection(document, outcome)))
            for bad in bad_lines.lines:
                rejected.write(dump_line({"id": None, "reason": bad.reason, "file": bad.file, "line": bad.line}))
    finally:
        await backend.close()


def _read(path: str, bad_lines: BadLines) -> Iterable[Document]:
    return read_records(path, lambda raw, where: [parse_document(raw, where)], bad_lines)


def _judge(document: Document, result: Pair | Refusal, settings: UnificationSettings) -> Pair | Refusal:
    if isinstance(result, Refusal):
        return result
    reason = refuse_pair(result, document, settings)
    return Refusal(reason, result.question, result.answer) if reason else result


def _to_conversation(document: Document, pair: Pair) -> Conversation:
    provenance = {"document": document.id, **(document.metadata or {}).get("origin", {}), **pair.provenance}
    turns = (Turn("human", pair.question), Turn("gpt", pair.answer))
    return Conversation(document.id, turns, document.source, provenance)
