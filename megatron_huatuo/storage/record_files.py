"""Files of records in every format that is read: JSON Lines, one JSON document, CSV and TSV with a header, Parquet.

Invariant: every record of a file is yielded, or counted as a bad line under its number. Text files may be compressed
(`.gz`, `.zst`) and in GB18030 or UTF-16.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.storage.jsonl import MAX_LINE_BYTES, BadLines, has_surrogate, read_jsonl, strict_decoder
from megatron_huatuo.storage.lfs_pointer import refuse_pointer
from megatron_huatuo.storage.text_files import READ_ERRORS, base_suffix, converted_from, open_binary

_PART_OF_NUMBER = re.compile(r"[0-9.eE+-]*")
_WHITE = re.compile(r"[ \t\r\n]*")
_WINDOW_CHARACTERS = 1 << 20
_PARQUET_ROWS = 1024

T = TypeVar("T")


class RawRecord(NamedTuple):
    """One record as it stands: its number (line, or place in the file, from 1), its byte offset where there is one."""

    number: int
    offset: int | None
    content: Any


def is_json_lines(path: str | os.PathLike[str]) -> bool:
    """Whether a file's lines are its records, by its name. `.json` may be anything and is not."""
    return base_suffix(path) not in (".json", ".csv", ".tsv", ".parquet")


def read_records(
    path: str | os.PathLike[str],
    parse: Callable[[Any, str], list[T]],
    bad_lines: BadLines | None = None,
) -> Iterator[T]:
    """Yield the parsed records of a file.

    parse: (raw object, "file:number") -> records; its DataError counts as a bad line with that text as the reason.
    In a `.json` file, an object `{name: [record…]}` counts as its records, each with `source` = name and `id` = name-index
    unless it has its own; a record of such an object that is a bare list [q, a…] becomes `dialogue`.
    """
    bad = BadLines() if bad_lines is None else bad_lines
    for number, _, content in read_raw_records(path, bad):
        try:
            records = parse(content, f"{path}:{number}")
        except DataError as error:
            bad.add_error(path, number, error)
            continue
        yield from records


def read_raw_records(path: str | os.PathLike[str], bad: BadLines) -> Iterator[RawRecord]:
    """Yield the records of a file, read by the format that its name says.

    Memory is bounded by a record, or a batch of Parquet rows; a `.json` file that is one object is read whole.
    Raises: DataError when the file is incomplete or of another format; ConfigError when a package for it is missing.
    """
    suffix = base_suffix(path)
    if suffix == ".parquet":
        yield from _read_parquet(path, bad)
    elif suffix in (".csv", ".tsv"):
        yield from _read_table(path, bad, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".json" and (first := _first_sign(path)) == "[":
        yield from _read_array(path, bad)
    elif suffix == ".json" and first == "{" and (whole := _read_whole(path)) is not None:
        _count_conversion(path, bad)
        yield from (RawRecord(number, None, item) for number, item in enumerate(_ungroup(whole), start=1))
    else:
        yield from (RawRecord(line.number, line.offset, line.record) for line in read_jsonl(path, bad))


def _count_conversion(path: str | os.PathLike[str], bad: BadLines) -> None:
    if encoding := converted_from(path):
        bad.tolerated[f"file in {encoding}"] += 1


def _open_text(path: str | os.PathLike[str]) -> io.TextIOWrapper:
    """Bytes that are not UTF-8 become lone surrogates, so that only the record that holds them is bad."""
    return io.TextIOWrapper(open_binary(path), "utf-8-sig", errors="surrogateescape", newline="")


def _first_sign(path: str | os.PathLike[str]) -> str:
    try:
        with _open_text(path) as handle:
            while (sign := handle.read(1)).isspace():
                pass
            return sign
    except READ_ERRORS:
        return ""  # the reader of lines names the fault


def _read_array(path: str | os.PathLike[str], bad: BadLines) -> Iterator[RawRecord]:
    """The elements of a file that is one JSON array, one at a time."""
    _count_conversion(path, bad)
    with _open_text(path) as handle:
        window = _Window(handle)
        number = 0
        try:
            window.take("[")
            while not window.take("]"):
                if number and not window.take(","):
                    raise ValueError("no comma after it")
                content = window.decode()
                number += 1
                if window.fault:
                    bad.add(path, number, f"malformed JSON: {window.fault}")
                elif has_surrogate(content):
                    bad.add(path, number, "lone surrogate or invalid UTF-8: text that no UTF-8 can hold")
                else:
                    yield RawRecord(number, None, content)
            if not window.is_at_end():
                raise ValueError("more text behind the array")
        except READ_ERRORS as error:
            raise DataError(f"file is incomplete after record {number}: {error} ({path}). Copy it again.") from error
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DataError(
                f"malformed JSON after record {number} of an array: {reason} ({path}:{number + 1}). Fix the file."
            ) from error


class _Window:
    """The part of a JSON text that is being looked at; it grows only where a value does not end in it.

    fault: what is not JSON in the last value although it could be decoded: NaN, infinity, a number out of range.
    """

    def __init__(self, handle: io.TextIOWrapper) -> None:
        self._handle, self._text, self._place = handle, "", 0
        self._decoder = json.JSONDecoder(parse_constant=self._refuse, parse_float=self._number)
        self.fault = ""

    def take(self, sign: str) -> bool:
        """Whether the next sign that is not white space is this one, which is then passed."""
        self._skip_white()
        found = self._text.startswith(sign, self._place)
        self._place += found
        return found

    def is_at_end(self) -> bool:
        """Whether only white space is left."""
        self._skip_white()
        return self._place == len(self._text)

    def decode(self) -> Any:
        """The value that starts here. Raises: ValueError, RecursionError."""
        self._skip_white()
        while True:
            self.fault = ""
            try:
                content, end = self._decoder.raw_decode(self._text, self._place)
            except ValueError:
                if len(self._text) - self._place > MAX_LINE_BYTES or not self._grow():
                    raise
                continue
            if _PART_OF_NUMBER.fullmatch(self._text, end) and self._grow():  # the window may end within a number
                continue
            self._place = end
            return content

    def _refuse(self, name: str) -> None:
        self.fault = f"{name} is not JSON"

    def _number(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            self.fault = f"{digits[:20]} is too large for a number"
        return value

    def _skip_white(self) -> None:
        while True:
            match = _WHITE.match(self._text, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._text) or not self._grow():
                return

    def _grow(self) -> bool:
        """Read on, at least as much as there is: decoding again costs a constant factor then."""
        rest = self._text[self._place :]
        more = self._handle.read(max(_WINDOW_CHARACTERS, len(rest)))
        self._text, self._place = rest + more, 0
        return bool(more)


def _read_whole(path: str | os.PathLike[str]) -> Any | None:
    """The content of a `.json` file that is one object; None when its first line is one by itself and others follow, or
    when it is broken: the reader of lines says where."""
    try:
        with open_binary(path) as handle:
            first = handle.readline(MAX_LINE_BYTES)
            rest = handle.readline(MAX_LINE_BYTES) if _is_object(first) else b""
            if rest.strip():
                return None
            raw = first + rest + handle.read()
    except READ_ERRORS:
        return None
    try:
        whole = strict_decoder.decode(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return None if b"\\u" in raw and has_surrogate(whole) else whole


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _ungroup(whole: Any) -> Iterator[Any]:
    """The records of a whole JSON file, so that one bad record costs only itself."""
    if isinstance(whole, dict) and whole and all(_is_group(value) for value in whole.values()):
        for name, items in whole.items():
            for index, item in enumerate(items):
                known = {"id": f"{name}-{index}", "source": name}
                yield {**known, **item} if isinstance(item, dict) else {**known, "dialogue": item}
    else:
        yield whole


def _is_group(value: Any) -> bool:
    """A list of records: lists or objects. The turns of one conversation are objects too, but they have a speaker."""
    return isinstance(value, list) and all(
        isinstance(item, list) or (isinstance(item, dict) and not {"from", "role"} & item.keys()) for item in value
    )


def csv_reader(text: Iterable[str], **dialect: Any) -> Any:
    """csv.reader for cells as long as a line may be. That limit is of the whole process: whoever reads CSV reads it so."""
    csv.field_size_limit(MAX_LINE_BYTES)
    return csv.reader(text, **dialect)


def _read_table(path: str | os.PathLike[str], bad: BadLines, delimiter: str) -> Iterator[RawRecord]:
    """Rows as objects of the header's columns; a record's number is the line where it ends. A cell may hold line breaks."""
    _count_conversion(path, bad)
    with _open_text(path) as handle:
        rows = csv_reader(handle, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            if len(set(header)) < len(header) or not all(header):
                raise DataError(f"wrong header: got {header[:9]}, need one name for each column ({path}:1). Fix it.")
            for row in rows:
                if not any(row):
                    bad.tolerated["blank line"] += 1
                elif len(row) != len(header):
                    bad.add(path, rows.line_num, f"wrong number of columns: got {len(row)}, need {len(header)}")
                elif has_surrogate(row):
                    bad.add(path, rows.line_num, "invalid UTF-8")
                else:
                    yield RawRecord(rows.line_num, None, dict(zip(header, row, strict=True)))
        except READ_ERRORS as error:
            raise DataError(
                f"file is incomplete after line {rows.line_num}: {error} ({path}). Copy it again."
            ) from error
        except csv.Error as error:
            raise DataError(
                f"no table: {error} in the row that ends at line {rows.line_num} ({path}). Fix its quotes."
            ) from error


def _read_parquet(path: str | os.PathLike[str], bad: BadLines) -> Iterator[RawRecord]:
    """Rows as objects. Only here is pyarrow imported."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"reading {path} needs the package pyarrow: pip install pyarrow.") from error
    number = 0
    try:
        refuse_pointer(path)
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"two columns of one name: got {names} ({path}). Rename one.")
            for batch in file.iter_batches(_PARQUET_ROWS):
                for row in _rows(_without_nanoseconds(batch)):
                    number += 1
                    if isinstance(row, Exception):
                        bad.add(path, number, f"value out of range: {row}")
                    else:
                        yield RawRecord(number, None, {name: to_json_value(row[name], bad.tolerated) for name in row})
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"file is incomplete or not Parquet after row {number}: {error} ({path}). Copy it again."
        ) from error


def _without_nanoseconds(batch: Any) -> Any:
    """Times to the microsecond, which is all that Python's own have."""
    import pyarrow

    coarser = {"timestamp[ns": "timestamp", "time64[ns": "time64", "duration[ns": "duration"}
    for index, field in enumerate(batch.schema):
        kind = next((name for start, name in coarser.items() if str(field.type).startswith(start)), None)
        if kind is not None:
            zone = {"tz": field.type.tz} if kind == "timestamp" else {}
            column = batch.column(index).cast(getattr(pyarrow, kind)("us", **zone), safe=False)
            batch = batch.set_column(index, field.name, column)
    return batch


def _rows(batch: Any) -> Iterable[Any]:
    """The rows of a batch; an exception for one with a value that Python has no word for (a date in the year 20000)."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):
        return [_row(batch, index) for index in range(batch.num_rows)]


def _row(batch: Any, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return error


def to_json_value(value: Any, notes: Counter[str]) -> Any:
    """A value of a table in JSON's words: dates as ISO 8601, decimals as text, bytes as the text they hold.

    notes: counts what JSON has no word for and becomes null: "NaN or infinity", "bytes that are no text".
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        notes["value left out: NaN or infinity"] += 1
        return None
    if isinstance(value, dict):
        return {str(name): to_json_value(item, notes) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item, notes) for item in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            notes["value left out: bytes that are no text"] += 1
            return None
    return str(value)  # decimals, durations, UUIDs
