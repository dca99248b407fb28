"""Files of raw text to located documents.

Invariant: every record of a file is yielded or counted in `BadLines`; each yielded one knows its file, line and offset.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines, read_jsonl
from megatron_huatuo.storage.records import LANGUAGES, Document, parse_document
from megatron_huatuo.text.language import detect_language

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".json.gz", ".json")


class Located(NamedTuple):
    """A document and where it stands: line from 1, byte offset in the uncompressed file."""

    document: Document
    file: str
    line: int
    offset: int


def expand_inputs(patterns: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Files that match the patterns, in the order of the patterns, then by name; each once.

    Raises: DataError for a pattern without files or a file of unknown format.
    """
    files: dict[str, None] = {}
    for pattern in (os.fspath(item) for item in patterns):
        # A file named with glob characters is still that file.
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [path for path in found if os.path.isfile(path)]
        if not found:
            raise DataError(f"no input file: nothing matches {pattern!r} in {os.getcwd()}. Check the path.")
        files.update(dict.fromkeys(found))
    for path in files:
        if not path.lower().endswith(JSONL_SUFFIXES):
            raise DataError(f"unknown file format: got {Path(path).name!r}, need one of {JSONL_SUFFIXES} ({path}).")
    return list(files)


def read_documents(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Located]:
    """Documents of one file.

    source: replaces the records' own source when given.
    Records need "text" only (as in C4): a missing id becomes FILE:LINE, a missing language is detected.
    """
    for line in read_jsonl(path, bad_lines):
        where = f"{path}:{line.number}"
        try:
            document = _to_document(line.record, source, where)
        except DataError as error:
            bad_lines.add(path, line.number, str(error))
            continue
        yield Located(document, path, line.number, line.offset)


def _to_document(record: Mapping[str, Any], source: str | None, where: str) -> Document:
    """The record with what raw sources leave out; wrong values stay for the parser to refuse."""
    completed = {"id": Path(where).name, **record}
    if source is not None:
        completed["source"] = source
    elif "source" not in record:
        raise DataError(f"no source: the record has no 'source' ({where}). Name it with --source.")
    if "language" in record or not isinstance(record.get("text"), str):
        return parse_document(completed, where)
    document = parse_document({**completed, "language": LANGUAGES[0]}, where)
    return dataclasses.replace(document, language=detect_language(document.text))
