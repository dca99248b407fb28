"""Files of raw text to items, whatever their format.

Invariant: every record of a file is yielded or counted in `BadLines`; each yielded one knows its file and place.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from megatron_huatuo.corpus.item import Item
from megatron_huatuo.corpus.parquet import read_parquet
from megatron_huatuo.corpus.plain_text import read_plain_text
from megatron_huatuo.corpus.pubmed import read_pubmed
from megatron_huatuo.corpus.raw_records import to_document
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines, read_jsonl

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
        if not found:
            raise DataError(f"no input file: nothing matches {pattern!r} in {os.getcwd()}. Check the path.")
        files.update(dict.fromkeys(found))
    for path in files:
        find_reader(path)
    return list(files)


def find_reader(path: str) -> Reader:
    """The reader of a file, by its name. Raises DataError for an unknown one."""
    name = Path(path).name.lower()
    for suffixes, reader in _READERS:
        if name.endswith(suffixes):
            return reader
    known = [suffix for suffixes, _ in _READERS for suffix in suffixes]
    raise DataError(f"unknown file format: got {Path(path).name!r}, need a name that ends in one of {known} ({path}).")


def read_json_lines(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Item]:
    """Records line by line; "text" is enough, as in C4 (`.json.gz` is JSON Lines there)."""
    for line in read_jsonl(path, bad_lines):
        try:
            document = to_document(line.record, source, path, line.number)
        except DataError as error:
            bad_lines.add(path, line.number, str(error))
            continue
        yield Item(document, path, line.number, line.offset)


_READERS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    ((".jsonl", ".jsonl.gz", ".json", ".json.gz"), read_json_lines),
    ((".xml", ".xml.gz"), read_pubmed),
    ((".parquet",), read_parquet),
    ((".txt", ".txt.gz"), read_plain_text),
)
