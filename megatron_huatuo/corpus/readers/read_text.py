"""Plain text and books: one document a chapter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_huatuo.corpus.account import Item
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import Document
from megatron_huatuo.storage.text_files import READ_ERRORS, converted_from, open_binary
from megatron_huatuo.text.language import detect_language

_CHAPTER = re.compile(
    r"^[ \t\u3000]*(第[〇零一二三四五六七八九十百千\d]{1,6}[章篇回节][^\n]{0,60}|(?:Chapter|CHAPTER|Part|PART)\s+[\dIVXLC]{1,6}\b[^\n]{0,80})\s*$"
)


def read_plain_text(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Item]:
    """Chapters of a UTF-8 text, each with its heading as title; a text without headings is one document.

    The line and offset of an item are those where its chapter starts. A line that is not UTF-8 is a bad line.
    Raises: DataError when the file is incomplete, or without a source.
    """
    if source is None:
        raise DataError(f"no source: plain text does not name its own ({path}). Name it with --source.")
    name = Path(path).name
    for number, (title, line, offset, text) in enumerate(_chapters(path, bad_lines), start=1):
        document = Document(f"{name}-{number}", source, detect_language(text), text, title)
        yield Item(document, path, line, offset)


def _chapters(path: str, bad_lines: BadLines) -> Iterator[tuple[str | None, int, int, str]]:
    """(title, first line, offset, text); the text before the first heading comes without title."""
    title: str | None = None
    start, offset = 1, 0
    lines: list[str] = []
    for number, position, text in _lines(path, bad_lines):
        heading = _CHAPTER.match(text)
        if heading:
            if title or "".join(lines).strip():
                yield title, start, offset, "".join(lines)
            title, start, offset, lines = heading[1].strip(), number, position, []
        else:
            lines.append(text)
    if title or "".join(lines).strip():
        yield title, start, offset, "".join(lines)


def _lines(path: str, bad_lines: BadLines) -> Iterator[tuple[int, int, str]]:
    number, position = 0, 0
    if encoding := converted_from(path):
        bad_lines.tolerated[f"file in {encoding}"] += 1
    with open_binary(path) as handle:
        try:
            for raw in handle:
                number += 1
                try:
                    yield number, position, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    bad_lines.add(path, number, f"invalid UTF-8: byte {error.start}")
                position += len(raw)
        except READ_ERRORS as error:
            raise DataError(f"file is incomplete after line {number}: {error} ({path}). Copy it again.") from error
