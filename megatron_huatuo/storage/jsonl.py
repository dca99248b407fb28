"""JSON Lines, read with every fault named by file and line, written atomically.

Invariant: no bad line passes silently. Each is counted in `BadLines`, which stops the reader when there are more than
allowed (none by default). Policy for text (faults.md rows 18 and 19): a byte-order mark and CRLF are accepted and
counted, blank lines are skipped and counted; malformed JSON, invalid UTF-8, lone surrogates, NaN literals, numbers
beyond the range of a double, lines that are not an object, and lines over 64 MiB are bad.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from megatron_huatuo.errors import BlankTextError, DataError
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.text_files import READ_ERRORS, converted_from, open_binary

MAX_LINE_BYTES = 64 << 20
_MOST_SHOWN = 12  # kinds of what was tolerated, in one line
_BOM = b"\xef\xbb\xbf"


class JsonLine(NamedTuple):
    """One line: its number (from 1), its byte offset in the uncompressed file, and its object."""

    number: int
    offset: int
    record: dict[str, Any]


class RawLine(NamedTuple):
    """One line as bytes, with its number and offset; `raw` is None when it is over MAX_LINE_BYTES."""

    number: int
    offset: int
    raw: bytes | None


class BadLine(NamedTuple):
    """Where a line is bad, and why."""

    file: str
    line: int
    reason: str


@dataclass
class BadLines:
    """Bad lines of one run over any number of files.

    max_bad_lines: how many are skipped before the run stops (0: the first one stops it).
    tolerated: counts of what is accepted but worth knowing ("byte-order mark", "blank line", "key not read: label").
    """

    max_bad_lines: int = 0
    lines: list[BadLine] = field(default_factory=list)
    tolerated: Counter[str] = field(default_factory=Counter)

    def add(self, file: str | os.PathLike[str], line: int, reason: str) -> None:
        """Count a bad line. Raises DataError naming file and line when it is one too many."""
        reason = reason.replace(f" ({file}:{line})", "")  # parsers name the place as well: once is enough
        self.lines.append(BadLine(os.fspath(file), line, reason))
        if len(self.lines) > self.max_bad_lines:
            raise DataError(
                f"bad line: {reason} ({file}:{line}); {len(self.lines)} bad so far, allowed {self.max_bad_lines}. "
                "Fix the line, or allow more with --max-bad-lines."
            )

    def add_error(self, file: str | os.PathLike[str], line: int, error: DataError) -> None:
        """Count a record that does not parse: a blank text is tolerated, anything else is a bad line."""
        if isinstance(error, BlankTextError):
            self.tolerated["blank text"] += 1
        else:
            self.add(file, line, str(error))

    def count_by_reason(self) -> dict[str, int]:
        """{reason without its details: count}, largest first."""
        return dict(Counter(bad.reason.split(":")[0] for bad in self.lines).most_common())


def describe_tolerated(tolerated: Mapping[str, int]) -> str:
    """What was tolerated, for the last line of a tool.

    >>> describe_tolerated({"key not read: label": 40, "blank text": 2})
    'blank text 2, key not read: label 40'
    """
    shown = [f"{kind} {number}" for kind, number in sorted(tolerated.items())]
    return ", ".join(
        [*shown[:_MOST_SHOWN], *([f"{len(shown) - _MOST_SHOWN} more"] if len(shown) > _MOST_SHOWN else [])]
    )


def read_jsonl(path: str | os.PathLike[str], bad_lines: BadLines | None = None) -> Iterator[JsonLine]:
    """Yield every good line of a JSON Lines file (`.gz` and `.zst` too); memory is bounded by the longest allowed line.

    bad_lines: where bad lines are counted; by default the first one raises DataError.
    """
    yield from parse_lines(split_lines(path), path, BadLines() if bad_lines is None else bad_lines)


def parse_lines(lines: Iterable[RawLine], path: str | os.PathLike[str], bad: BadLines) -> Iterator[JsonLine]:
    """Yield the good ones of raw lines, which `split_lines` gave, here or in another process; count the others."""
    for number, offset, raw in lines:
        if raw is None:
            bad.add(path, number, f"line is too long: over {MAX_LINE_BYTES} bytes")
            continue
        if number == 1 and (encoding := converted_from(path)):
            bad.tolerated[f"file in {encoding}"] += 1
        if number == 1 and raw.startswith(_BOM):
            bad.tolerated["byte-order mark"] += 1
            raw = raw[len(_BOM) :]
        if raw.endswith(b"\r\n"):
            bad.tolerated["CRLF"] += 1
        if not raw.strip():
            bad.tolerated["blank line"] += 1
            continue
        record, reason = _parse_object(raw)
        if record is None:
            bad.add(path, number, reason)
        else:
            yield JsonLine(number, offset, record)


def split_lines(path: str | os.PathLike[str], skipped_lines: int = 0, skipped_bytes: int = 0) -> Iterator[RawLine]:
    """Every line of a file, not yet parsed; None in place of the bytes of a line over the limit.

    skipped_lines, skipped_bytes: where to start, when the first lines are another reader's.
    Raises: DataError when the file cannot be read or decompressed.
    """
    number, offset = skipped_lines, skipped_bytes
    with open_binary(path) as handle:
        try:
            handle.seek(offset)
            while raw := handle.readline(MAX_LINE_BYTES + 1):
                number += 1
                start, offset = offset, offset + len(raw)
                too_long = len(raw) > MAX_LINE_BYTES
                while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    raw = handle.readline(MAX_LINE_BYTES + 1)
                    offset += len(raw)
                yield RawLine(number, start, None if too_long else raw)
        except READ_ERRORS as error:
            raise DataError(f"file is incomplete after line {number}: {error} ({path}). Copy it again.") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value


strict_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_float)
"""Decodes JSON without NaN and infinity; raises ValueError or RecursionError."""


def _parse_object(raw: bytes) -> tuple[dict[str, Any] | None, str]:
    """(object, "") or (None, reason)."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8: byte {error.start}"
    try:
        record = strict_decoder.decode(text)
    except ValueError as error:
        cut = "" if raw.endswith(b"\n") else ", and the line has no end: truncated?"
        return None, f"malformed JSON: {error}{cut}"
    except RecursionError:
        return None, "malformed JSON: nested too deeply"
    if not isinstance(record, dict):
        return None, f"no JSON object: got {type(record).__name__}"
    if "\\u" in text and has_surrogate(record):
        return None, "lone surrogate: text that no UTF-8 can hold"
    return record, ""


def has_surrogate(content: Any) -> bool:
    """Whether a text in it holds a lone surrogate, which no UTF-8 can hold."""
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def dump_line(record: Mapping[str, Any]) -> bytes:
    """One JSON line: UTF-8, no NaN, keys in the record's own order."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> int:
    """Write records atomically, one a line; returns their number."""
    count = 0
    with atomic_write(path) as handle:
        for record in records:
            handle.write(dump_line(record))
            count += 1
    return count
