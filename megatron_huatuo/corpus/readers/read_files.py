"""Files of raw text to items, whatever their format.

Invariant: every record of a file is yielded or counted in `BadLines`; each yielded one knows its file and place.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from megatron_huatuo.corpus.account import Item
from megatron_huatuo.corpus.readers.read_records import read_documents_of
from megatron_huatuo.corpus.readers.read_text import read_plain_text
from megatron_huatuo.corpus.readers.read_xml import read_xml
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.text_files import base_suffix

Reader = Callable[[str, str | None, BadLines], Iterator[Item]]


def expand_inputs(patterns: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Files that match the patterns, in the order of the patterns, then by name; each once.

    Raises: DataError for a pattern without files or a file of unknown format.
    """
    files: dict[str, None] = {}
    for pattern in (os.fspath(item) for item in patterns):
        # A file named with glob characters is still that file.
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [path for path in found if os.path.isfile(path)]
        if not found and os.path.isdir(pattern):
            raise DataError(
                f"directory as input: got {pattern!r}, need its files, such as '{pattern.rstrip('/')}/**/*.jsonl' in quotes."
            )
        if not found:
            raise DataError(f"no input file: nothing matches {pattern!r} in {os.getcwd()}. Check the path.")
        files.update(dict.fromkeys(found))
    for path in files:
        find_reader(path)
    return list(files)


def find_reader(path: str) -> Reader:
    """The reader of a file, by its name. Raises DataError for an unknown one."""
    for suffixes, reader in _READERS:
        if base_suffix(path) in suffixes:
            return reader
    known = [suffix for suffixes, _ in _READERS for suffix in suffixes]
    raise DataError(
        f"unknown file format: got {Path(path).name!r}, need a name that ends in one of {known}, or in one of these and .gz or .zst "
        f"({path})."
    )


_READERS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    ((".jsonl", ".json", ".csv", ".tsv", ".parquet"), read_documents_of),
    ((".xml", ".nxml"), read_xml),
    ((".txt",), read_plain_text),
)
