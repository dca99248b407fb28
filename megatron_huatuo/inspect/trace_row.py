"""From a training row back to the raw text: row -> document of an index -> pair -> passage -> byte of a source file.

Every step reads what the stage before has recorded: `P.origin.npy` the line of the pair, the pair's provenance the passage,
its document, file and offset. What is gone is said, and the rest is shown all the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.inspect.show_blend import BlendView
from megatron_huatuo.inspect.show_manifest import shorten
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.jsonl import MAX_LINE_BYTES, BadLines, read_jsonl, split_lines
from megatron_huatuo.storage.manifest import MANIFEST_NAME, read_json
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.record_files import read_records
from megatron_huatuo.storage.records import Conversation
from megatron_huatuo.storage.targets import target_rule
from megatron_huatuo.storage.text_files import open_binary

_PLACE = ("passage", "document", "file", "line", "offset", "part", "parts", "score")


def trace_row(directory: str | os.PathLike[str], number: int) -> list[str]:
    """Every document of a row of a blend, with its whole way back. Raises: ConfigError for a row outside the blend."""
    view = BlendView(directory)
    content = view.row(number)
    wanted: dict[str, set[int]] = {}
    for document in content.documents:
        wanted.setdefault(document.source, set()).add(document.document)
    prefixes = {source["name"]: source["path_prefix"] for source in view.manifest["sources"]}
    traces = {name: _trace(prefixes[name], numbers) for name, numbers in wanted.items()}
    lines = [f"row {number} of {os.fspath(directory)}: {len(content.documents)} documents, {content.padding} padding"]
    for document in content.documents:
        lines += traces[document.source][document.document]
    return lines


def trace_document(path_prefix: str | os.PathLike[str], number: int) -> list[str]:
    """One document of an index. Raises: ConfigError for a number outside it."""
    return _trace(path_prefix, {number})[number]


def _trace(path_prefix: str | os.PathLike[str], numbers: set[int]) -> dict[int, list[str]]:
    """{document: lines}; each file is read once for all of them."""
    index = IndexedReader(path_prefix)
    for number in numbers:
        if not 0 <= number < len(index):
            raise ConfigError(f"wrong document: got {number}, need 0 to {len(index) - 1} ({index.path_prefix}).")
    places = {number: index.origin(number) for number in numbers}
    lines_by_file: dict[str, set[int]] = {}
    for place in places.values():
        if place is not None:
            lines_by_file.setdefault(place[0], set()).add(place[1])
    if target_rule(index.manifest, index.path_prefix).becomes_pieces:
        return {number: _trace_text(index, number, place) for number, place in places.items()}
    pairs = {file: _read_pairs(file, lines) for file, lines in lines_by_file.items() if Path(file).is_file()}
    passages = {file: _read_passages(file, found.values()) for file, found in pairs.items()}
    traces = {}
    for number, place in places.items():
        head = f"document {number} of {index.path_prefix}"
        if place is None:
            traces[number] = [f"{head}: no origin recorded"]
            continue
        file, line = place
        pair = pairs.get(file, {}).get(line)
        if pair is None:
            traces[number] = [f"{head}: {file}:{line}, which is gone"]
        else:
            traces[number] = [f"{head}: pair {pair.id}, {file}:{line}", *_describe_pair(pair, passages[file])]
    return traces


def _trace_text(index: IndexedReader, number: int, place: tuple[str, int] | None) -> list[str]:
    """A document of raw text: its record, and where the corpus has it from."""
    head = f"document {number} of {index.path_prefix}"
    if place is None:
        return [f"{head}: no origin recorded"]
    file, line = place
    record = _read_pairs(file, {line}, _parse_text).get(line) if Path(file).is_file() else None
    if record is None:
        return [f"{head}: {file}:{line}, which is gone"]
    metadata = record.get("metadata")
    origin = metadata.get("origin") if isinstance(metadata, dict) else None
    return [
        f"{head}: text {record.get('id', '')}, {file}:{line}",
        f"  {shorten(record['text'])}",
        *([f"  source {shorten(str(origin))}"] if origin else []),
    ]


def _parse_text(raw: Any, where: str) -> list[dict[str, Any]]:
    if not (isinstance(raw, dict) and isinstance(raw.get("text"), str) and raw["text"].strip()):
        raise DataError(f"record without text ({where})")
    return [raw]


def _read_pairs(
    file: str, wanted: set[int], parse: Callable[[Any, str], list[Any]] = parse_conversations
) -> dict[int, Any]:
    """Records by line, or, from a `.json` file, by number."""
    if Path(file).suffix == ".json":
        numbered = enumerate(read_records(file, parse, BadLines(sys.maxsize)), start=1)
        return {number: record for number, record in numbered if number in wanted}
    found = {}
    for number, _, raw in split_lines(file):
        if number in wanted and raw is not None:
            found[number] = parse(orjson.loads(raw.removeprefix(b"\xef\xbb\xbf")), f"{file}:{number}")[0]
        if number >= max(wanted):
            break
    return found


def _read_passages(file: str, pairs: Iterable[Conversation]) -> dict[str, str]:
    """{id: text} of the passages that pairs were made from, out of the files that the unification read."""
    manifest = Path(file).with_name(MANIFEST_NAME)
    missing = {pair.provenance["passage"] for pair in pairs if pair.provenance and "passage" in pair.provenance}
    found: dict[str, str] = {}
    for source in read_json(manifest).get("inputs", ()) if missing and manifest.is_file() else ():
        for _, _, record in read_jsonl(source, BadLines(sys.maxsize)) if Path(source).is_file() else ():
            if record.get("id") in missing and isinstance(record.get("text"), str):
                found[record["id"]] = record["text"]
                if len(found) == len(missing):
                    return found
    return found


def _describe_pair(pair: Conversation, passages: Mapping[str, str]) -> list[str]:
    provenance = pair.provenance
    if not provenance:
        return ["  no provenance: the pair was not made from a passage"]
    made_by = ", ".join(f"{key} {value}" for key, value in provenance.items() if key not in _PLACE)
    name, document = provenance.get("passage"), provenance.get("document")
    part = f", part {provenance['part']} of {provenance['parts']}" if "part" in provenance else ""
    place = f"{provenance.get('file')}:{provenance.get('line')}"
    offset = provenance.get("offset")
    score = f", quality score {provenance['score']}" if "score" in provenance else ""
    lines = [f"  made by {made_by}", f"  passage {name} of document {document}{part}{score}"]
    lines.append(
        f"  {passages[name]}"
        if name is not None and name in passages
        else "  (its text is gone with the file that unification read)"
    )
    at = "" if offset is None else f", byte {offset}"
    return [*lines, f"  source {place}{at}: {shorten(_source_text(provenance.get('file'), offset))}"]


def _source_text(file: Any, offset: Any) -> str:
    """What stands in the source file at the offset: the text of a record, or the line."""
    if not isinstance(offset, int):
        return "(a format without offsets)"
    if not isinstance(file, str) or not Path(file).is_file():
        return "(the file is gone)"
    with open_binary(file) as handle:
        handle.seek(offset)
        raw = handle.readline(MAX_LINE_BYTES)
    try:
        return str(orjson.loads(raw)["text"])
    except (ValueError, KeyError, TypeError):
        return raw.decode("utf-8", "backslashreplace").strip()
