"""Curation: raw files to one directory of clean passages.

Invariant: documents.jsonl keeps the order of the input; every document read is there or in rejected.jsonl.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.corpus.passages import Rejected, make_passages
from megatron_huatuo.corpus.readers import expand_inputs, read_documents
from megatron_huatuo.corpus.report import CurationReport
from megatron_huatuo.corpus.settings import CurationSettings
from megatron_huatuo.errors import DataError
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.jsonl import BadLines, dump_line
from megatron_huatuo.storage.manifest import describe_files, write_json, write_manifest
from megatron_huatuo.storage.records import Document

KIND = "corpus"


def curate(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    source: str | None = None,
    settings: CurationSettings | None = None,
    max_bad_lines: int = 0,
) -> dict[str, Any]:
    """Write `output`: documents.jsonl, rejected.jsonl, report.json and manifest.json; returns the report.

    inputs: files or glob patterns.
    source: name of the source for all documents; by default each record names its own.
    Raises: DataError for a bad line beyond `max_bad_lines`, or when nothing is left.
    """
    settings = settings or CurationSettings()
    files = expand_inputs(inputs)
    bad_lines = BadLines(max_bad_lines)
    report = CurationReport()
    with atomic_directory(output, replace=True) as directory:
        _write(directory, _results(files, source, settings, bad_lines, report), report)
        content = report.to_record(bad_lines)
        if not content["documents_out"]:
            raise DataError(
                f"nothing left: {content['documents_in']} documents in, none out; "
                f"rejected: {content['rejected_by_reason']} ({', '.join(files[:3])}). Check the input and the settings."
            )
        write_json(directory / "report.json", content)
        described = {"inputs": {path: describe_files(Path(), [path])[path] for path in files}}
        write_manifest(
            directory,
            KIND,
            {**described, "settings": to_plain(settings), "source": source},
            ["documents.jsonl", "rejected.jsonl", "report.json"],
        )
    get_logger(__name__).info(
        "curated %d documents into %d passages (%d rejected): %s",
        content["documents_in"], content["documents_out"], content["rejected"], output,
    )  # fmt: skip
    return content


def _results(
    files: list[str], source: str | None, settings: CurationSettings, bad_lines: BadLines, report: CurationReport
) -> Iterator[Document | Rejected]:
    """Passages and rejections of all files in order, exact duplicates rejected."""
    seen: dict[bytes, str] = {}
    for path in files:
        for located in progress(read_documents(path, source, bad_lines), description=Path(path).name, unit="doc"):
            report.add_read(located.document)
            for result in make_passages(located, settings, report.repairs):
                if isinstance(result, Document):
                    first = seen.setdefault(_text_key(result.text), result.id)
                    if first != result.id:
                        yield Rejected(result.id, f"exact duplicate: of {first}", path, located.line, result.source)
                        continue
                yield result
    for bad in bad_lines.lines:
        yield Rejected(None, bad.reason, bad.file, bad.line, None)


def _text_key(text: str) -> bytes:
    """Equal for texts that differ in white space only."""
    return hashlib.blake2b("".join(text.split()).encode(), digest_size=16).digest()


def _write(directory: Path, results: Iterable[Document | Rejected], report: CurationReport) -> None:
    with open(directory / "documents.jsonl", "wb") as kept, open(directory / "rejected.jsonl", "wb") as rejected:
        for result in results:
            if isinstance(result, Document):
                report.add_kept(result)
                kept.write(dump_line(result.to_record()))
            else:
                report.add_rejected(result)
                rejected.write(dump_line(result.to_record()))
