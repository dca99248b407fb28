"""Conversations or texts in JSON Lines -> `P.bin`, `P.idx`, `P.origin.npy`, `P.json`, tokenised by many processes.

Invariant: the bytes of all files depend on the input, the tokenizer and the options alone, never on the number of
workers; and every record that was read is a document or is counted by the reason for which it is none.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from megatron_huatuo.config import at_least
from megatron_huatuo.errors import ConfigError, DataError, HuatuoError
from megatron_huatuo.index.chunks import EncodedChunk, encode_chunk, split_inputs
from megatron_huatuo.index.encoded import RecordFormat
from megatron_huatuo.index.formats.format_table import DEFAULT_FORMAT, FormatSettings, open_format
from megatron_huatuo.index.pair_encoder import find_checked_pairs
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.index.workers import available_cores, ordered_map
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.jsonl import BadLines, describe_tolerated
from megatron_huatuo.storage.manifest import sha256_file
from megatron_huatuo.storage.record_files import is_json_lines
from megatron_huatuo.storage.targets import rule_named
from megatron_huatuo.storage.text_files import COMPRESSIONS

_log = get_logger(__name__)


def build_index(
    inputs: Sequence[str | PathLike[str]],
    output_prefix: str | PathLike[str],
    tokenizer: str | PathLike[str],
    *,
    workers: int | None = None,
    max_bad_lines: int = 0,
    source: str | None = None,
    settings: FormatSettings = DEFAULT_FORMAT,
) -> dict[str, Any]:
    """Tokenise conversations or texts, in the order of `inputs` and their lines, into one index; returns its manifest.

    inputs: `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` files, `.gz` and `.zst` too, in any layout of
    `read_dialogues`. tokenizer: what `load_tokenizer` takes.
    workers: tokenising processes, default one per core; 1 works in this process, and so does input of one chunk.
    max_bad_lines: how many are skipped and counted before the run stops. source: take only records of this source; the
    others are counted. settings: the format.

    Raises: DataError for input that cannot be read, for a bad line too many, and when no document is left; ConfigError
    for settings or a tokenizer that do not fit; HuatuoError when a worker dies. Nothing is published then.
    """
    paths = [fspath(path) for path in inputs]
    _check(paths, workers)
    opened = load_tokenizer(tokenizer)
    settings = settings.dated()
    form = open_format(settings, opened)
    totals = _Totals(max_bad_lines)
    with (
        _write_errors(output_prefix),
        IndexedWriter(output_prefix, opened.vocab_size, rule=rule_named(form.name)) as writer,
    ):
        chunks = split_inputs(paths, form)
        first = list(itertools.islice(chunks, 2))
        crew = 1 if len(first) < 2 else (workers or available_cores())
        encode = functools.partial(
            encode_chunk,
            tokenizer_path=fspath(tokenizer),
            pairs=find_checked_pairs(opened, sum(Path(path).stat().st_size for path in paths)),
            source=source,
            settings=settings,
        )
        with (
            contextlib.closing(ordered_map(encode, itertools.chain(first, chunks), crew)) as results,
            progress(total=_total_bytes(paths), description="tokenise", unit="B", unit_scale=True) as bar,
        ):
            for result in results:
                totals.add(result)
                part = result.encoded
                writer.add_documents(
                    part.tokens,
                    part.sequence_lengths,
                    part.sequence_modes,
                    part.sequences_per_document,
                    result.origins,
                )
                bar.update(result.num_bytes)
        if writer.documents == 0:
            raise DataError(
                f"no {settings.records.removesuffix('s')} to index: {len(paths)} files hold "
                f"{totals.counts['conversations']} {settings.records}, "
                f"{totals.counts['other_source']} of another source, dropped {totals.dropped()}"
                f"{'; ' if totals.bad.tolerated else ''}{describe_tolerated(totals.bad.tolerated)}. "
                f"{'Check --source.' if totals.counts['other_source'] else 'Check --input.'}"
            )
        manifest = writer.finish(_manifest_content(opened, fspath(tokenizer), form, paths, source, totals))
    _report(fspath(output_prefix), manifest)
    return manifest


@contextlib.contextmanager
def _write_errors(output_prefix: str | PathLike[str]) -> Iterator[None]:
    """A full or read-only disk as an error of one line. Reading turns its own errors into DataError."""
    try:
        yield
    except OSError as error:
        raise HuatuoError(
            f"cannot write {fspath(output_prefix)}: {error}. Nothing was published; make room and run it again."
        ) from error


class _Totals:
    """Counts over all chunks, in order."""

    def __init__(self, max_bad_lines: int) -> None:
        self.counts: Counter[str] = Counter()
        self.bad = BadLines(max_bad_lines)
        self._dropped: Counter[str] = Counter()

    def add(self, result: EncodedChunk) -> None:
        """Raises DataError naming file and line for a bad line too many."""
        for line in result.bad:
            self.bad.add(line.file, line.line, line.reason)
        self.bad.tolerated.update(result.tolerated)
        self.counts.update(result.counts)
        self._dropped.update(result.encoded.dropped)

    def dropped(self) -> dict[str, int]:
        """{reason: records that are no document}, bad lines included."""
        return {**self.bad.count_by_reason(), **self._dropped}


def _check(paths: list[str], workers: int | None) -> None:
    at_least("--workers", workers, 1)
    if not paths:
        raise ConfigError("no input: need at least one file. Give --input FILE.")
    for path in paths:
        if not Path(path).is_file():
            raise DataError(f"no such file: {path}. Check --input.")


def _total_bytes(paths: list[str]) -> int | None:
    """Bytes that chunks will report, for the progress bar; None where files are compressed or read whole."""
    if any(not is_json_lines(path) or Path(path).suffix in COMPRESSIONS for path in paths):
        return None
    return sum(Path(path).stat().st_size for path in paths)


def _manifest_content(
    tokenizer: Tokenizer,
    tokenizer_path: str,
    form: RecordFormat,
    paths: list[str],
    source: str | None,
    totals: _Totals,
) -> dict[str, Any]:
    counts = totals.counts
    return {
        "chat_format": form.name,
        **form.describe(),
        "tokenizer": {
            "path": tokenizer_path,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
        },
        "inputs": [{"path": path, "bytes": Path(path).stat().st_size, "sha256": sha256_file(path)} for path in paths],
        "source": source,
        "conversations": counts["conversations"],
        "other_source": counts["other_source"],
        "dropped": totals.dropped(),
        "bad_lines": [line._asdict() for line in totals.bad.lines],
        "tolerated": dict(totals.bad.tolerated),
        "template": {"checked": counts["template_checked"], "mismatched": counts["template_mismatched"]},
        **{name: counts[name] for name in form.counts},
        "unknown_tokens": counts["unknown_tokens"],
        "role_tag_in_text": counts["role_tag_in_text"],
        "unusual_character": counts["unusual_character"],
    }


def _report(output_prefix: str, manifest: dict[str, Any]) -> None:
    _log.info(
        "%s: %d documents, %d tokens, %d trained on; %d dropped %s",
        output_prefix,
        manifest["documents"],
        manifest["tokens"],
        manifest["trained_tokens"],
        sum(manifest["dropped"].values()),
        manifest["dropped"] or "",
    )
    if manifest["tolerated"]:
        _log.warning("beside these: %s", describe_tolerated(manifest["tolerated"]))
    template = manifest["template"]
    if template["mismatched"]:
        _log.warning(
            "the tokenizer encodes %d of %d checked conversations otherwise than part by part: a served prompt gives other "
            "ids than training sees (merges across a role tag)",
            template["mismatched"],
            template["checked"],
        )
