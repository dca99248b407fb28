"""The exam formats that there are: every module of this folder that holds a `FORMAT`.

Invariant: a file is read by exactly one format, so no format claims the files of another.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path

from megatron_huatuo import exams
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.exams.exam_format import CSV_SUFFIXES, ExamFormat, FileHead, read_csv_rows
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.record_files import read_records

OWN = "own"


@functools.cache
def _found_in(folders: tuple[str, ...]) -> dict[str, ExamFormat]:
    formats: dict[str, ExamFormat] = {}
    for module in pkgutil.iter_modules(folders, f"{exams.__name__}."):
        found = getattr(importlib.import_module(module.name), "FORMAT", None)
        if found is None:
            continue
        if found.name in formats:
            raise ConfigError(f"two exam formats are called {found.name!r}. Rename the one in {module.name}.")
        formats[found.name] = found
    return formats


def exam_formats() -> dict[str, ExamFormat]:
    """{name: format} of every file in the folder, in alphabetical order. Raises: ConfigError for a name used twice."""
    return dict(_found_in(tuple(exams.__path__)))


def exam_format(name: str) -> ExamFormat:
    """The format of that name. Raises: ConfigError naming those that there are."""
    formats = exam_formats()
    if name not in formats:
        raise ConfigError(f"unknown exam format: got {name!r}, need auto, {', '.join(formats)}.")
    return formats[name]


def recognise_format(path: Path) -> ExamFormat:
    """The one format whose files begin like this one; the own layout where no published one does.

    Raises: DataError when two formats claim the file, or it is a CSV file that none knows.
    """
    head = read_head(path)
    formats = exam_formats()
    own = formats.pop(OWN)
    claims = [candidate for candidate in formats.values() if candidate.recognises(head)]
    if len(claims) > 1:
        names = " and ".join(candidate.name for candidate in claims)
        raise DataError(f"cannot tell the exam format of {path}: it may be {names}. Name it with --format.")
    if not claims and head.columns:
        raise DataError(
            f"unknown exam format: {path} is CSV with columns {', '.join(name[:40] for name in head.columns[:8])}. "
            f"Name one with --format ({', '.join(formats)}), or convert the file to JSON Lines (docs/data_formats.md)."
        )
    return claims[0] if claims else own


def read_head(path: Path) -> FileHead:
    """The beginning of a question file. Raises: DataError when it cannot be read, or is empty CSV."""
    if path.name.endswith(CSV_SUFFIXES):
        columns = next(read_csv_rows(path), None)
        if columns is None:
            raise DataError(f"no questions: {path} is empty. Give at least one file with exam questions.")
        return FileHead(path, tuple(columns), None)
    forgiving = BadLines(max_bad_lines=1 << 62)
    return FileHead(path, (), next(read_records(path, lambda raw, where: [raw], forgiving), None))
