"""Builds a blend directory: draws every document, packs the rows, and writes both as a stream.

Invariant: the directory appears complete or not at all; its bytes depend on the configuration and the indexes alone.
Memory is that of the lengths, the plan and one block of draws; the output goes through memory maps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.config import BlendConfig
from megatron_huatuo.blend.draws import ORDER_VERSION, Draws, fresh_draws
from megatron_huatuo.blend.packing import RowPacker
from megatron_huatuo.blend.priority import OrderPlan, document_dtype, source_dtype
from megatron_huatuo.blend.schedule import Schedule, Segment, write_schedule
from megatron_huatuo.blend.sources import OpenSource, open_sources
from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError, DataError, HuatuoError
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.manifest import fingerprint, read_manifest, verify_files, write_manifest

KIND = "blend"
ORDER_SOURCE, ORDER_DOCUMENT, ROW_START = "order_source.npy", "order_document.npy", "row_start.npy"
MEGATRON_DATASET, MEGATRON_SAMPLE = "megatron_dataset_index.npy", "megatron_dataset_sample_index.npy"
BLOCK_DRAWS = 1 << 20

_log = get_logger(__name__)


@dataclass
class SourceCounts:
    """What became of each source [S]: int64 counts over the whole blend."""

    documents: NDArray[np.int64]
    tokens: NDArray[np.int64]
    cut_documents: NDArray[np.int64]
    cut_tokens: NDArray[np.int64]
    padded_tokens: NDArray[np.int64]

    @classmethod
    def zeros(cls, num_sources: int) -> SourceCounts:
        return cls(*(np.zeros(num_sources, dtype=np.int64) for _ in range(5)))


@dataclass
class Prefix:
    """What a re-planned blend keeps of its parent; a fresh one keeps nothing."""

    source: NDArray[Any]
    """Packed order of the rows that were consumed [E]."""
    document: NDArray[Any]
    row_start: NDArray[np.int64]
    """Starts of those rows [consumed_rows]."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """parent_sha256 and consumed_rows."""


def build_blend(
    config: BlendConfig,
    output: str | os.PathLike[str],
    *,
    megatron_indices: bool = False,
    num_threads: int | None = None,
    device: str = "cpu",
) -> Path:
    """Build the blend of a configuration, or find that `output` holds it already.

    megatron_indices: also write Megatron's pair, int16 dataset and int64 sample index of every packed document.
    Returns: the directory. Raises: ConfigError, DataError, IntegrityError naming source and file.
    """
    sources = open_sources(config)
    inputs = describe_inputs(config, sources, megatron_indices)
    if is_built(Path(output), inputs):
        return Path(output)
    draws = fresh_draws(
        [source.num_usable for source in sources],
        [source.priority for source in config.sources],
        config.seed,
        [source.epochs for source in config.sources],
        [source.name for source in sources],
    )
    nothing = np.empty(0, dtype=np.int64)
    return write_blend(
        config,
        sources,
        draws,
        Prefix(nothing, nothing, nothing),
        [],
        output,
        inputs,
        num_threads=num_threads,
        device=device,
    )


def describe_inputs(config: BlendConfig, sources: list[OpenSource], megatron_indices: bool) -> dict[str, Any]:
    """Everything that decides the bytes of a blend, for comparison with the manifest of an existing one."""
    return {
        "order_version": ORDER_VERSION,
        "seq_length": config.seq_length,
        "seed": config.seed,
        "packing": to_plain(config.packing),
        "megatron_indices": megatron_indices,
        "sources": {
            source.name: {
                "position": position,
                "path_prefix": source.path_prefix,
                "priority": settings.priority,
                "epochs": settings.epochs,
                "index": source.fingerprint,
            }
            for position, (settings, source) in enumerate(zip(config.sources, sources, strict=True))
        },
    }


def is_built(output: Path, inputs: dict[str, Any]) -> bool:
    """Whether `output` holds this very blend, whole; otherwise say what differs."""
    if not output.exists():
        return False
    try:
        manifest = read_manifest(output, KIND)
        changes = describe_changes(manifest.get("inputs", {}), inputs)
        if not changes:
            verify_files(output, manifest)
            _log.info("found and reused: %s is this blend already", output)
            return True
    except HuatuoError as error:
        if any(output.iterdir()) and not (output / "manifest.json").exists():
            raise DataError(
                f"output directory is no blend: {output} holds other files. Choose another one, or delete it."
            ) from error
        _log.warning("%s is built again: %s", output, error)
        return False
    _log.warning("%s is built again, changed: %s", output, "; ".join(changes))
    return False


def describe_changes(old: Any, new: Any, key: str = "") -> list[str]:
    """Differences of two nested mappings as "key: old -> new".

    >>> describe_changes({"seed": 1, "packing": {"window": 8}}, {"seed": 2, "packing": {"window": 8}})
    ['seed: 1 -> 2']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            text
            for name in names
            for text in describe_changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    if old == new:
        return []
    return [f"{key}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "…"


def blend_sha256(manifest: dict[str, Any]) -> str:
    """What a run knows a blend by: sha256 over the hashes of order, rows and indexes."""
    files = {name: manifest["files"][name]["sha256"] for name in (ORDER_SOURCE, ORDER_DOCUMENT, ROW_START)}
    return fingerprint({"files": files, "indexes": [source["index"] for source in manifest["sources"]]})


def write_blend(
    config: BlendConfig,
    sources: list[OpenSource],
    draws: Draws,
    prefix: Prefix,
    segments: list[Segment],
    output: str | os.PathLike[str],
    inputs: dict[str, Any],
    *,
    num_threads: int | None = None,
    device: str = "cpu",
) -> Path:
    """Draw, pack and write; `segments` are those of the kept prefix."""
    if draws.total + len(prefix.source) == 0:
        raise DataError("no document to blend: every source has zero draws. Check the epochs and the indexes.")
    plan = OrderPlan(draws, num_threads=num_threads)
    with atomic_directory(output, replace=True) as directory:
        writer = _BlendWriter(directory, config, sources, draws, prefix)
        for source, document in _blocks(plan, num_threads, device):
            writer.add(source, document)
        row_start, counts = writer.finish()
        segments = [*segments, Segment(len(prefix.source), draws.num_draws, draws.priorities)]
        schedule = Schedule.of_rows([source.name for source in sources], directory / ORDER_SOURCE, segments)
        files = [ORDER_SOURCE, ORDER_DOCUMENT, ROW_START, *write_schedule(schedule, directory)]
        if inputs["megatron_indices"]:
            files += _write_megatron_indices(directory)
        content = _describe(config, sources, draws, prefix, segments, row_start, counts, inputs)
        write_manifest(directory, KIND, content, files)
    _log.info(
        "%s: %d documents of %d sources in %d rows of %d tokens, %.2f %% padding",
        output, content["documents"], len(sources), content["rows"], config.seq_length, 100 * content["padding_fraction"],
    )  # fmt: skip
    return Path(output)


def _blocks(plan: OrderPlan, num_threads: int | None, device: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    with progress(total=plan.total, description="blend", unit="document", unit_scale=True) as bar:
        for start in range(0, plan.total, BLOCK_DRAWS):
            stop = min(start + BLOCK_DRAWS, plan.total)
            yield plan.order(start, stop, num_threads=num_threads, device=device)
            bar.update(stop - start)


class _BlendWriter:
    """Takes draws, gives packed entries to the memory-mapped outputs, and counts."""

    def __init__(
        self, directory: Path, config: BlendConfig, sources: list[OpenSource], draws: Draws, prefix: Prefix
    ) -> None:
        self._sources, self._seq_length = sources, config.seq_length
        self._directory = directory
        self._total = draws.total + len(prefix.source)
        most = max(source.num_documents for source in sources)
        self._source = self._create(ORDER_SOURCE, source_dtype(len(sources)))
        self._document = self._create(ORDER_DOCUMENT, document_dtype(most))
        self._offset = len(prefix.source)  # entries before this plan's first
        self._source[: self._offset] = prefix.source
        self._document[: self._offset] = prefix.document
        self._row_starts = [prefix.row_start]
        self._packer = RowPacker(config.seq_length, config.packing.window)
        self._drawn = self._written = 0
        self._waiting_source = np.empty(0, dtype=self._source.dtype)  # draws from number _first_waiting on
        self._waiting_document = np.empty(0, dtype=self._document.dtype)
        self._first_waiting = 0
        self._reach = 2 * config.packing.window  # a placed draw is never older than that

    def _create(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.lib.format.open_memmap(self._directory / name, mode="w+", dtype=dtype, shape=(self._total,))

    def add(self, source: NDArray[Any], document: NDArray[Any]) -> None:
        """Take the next draws of the order."""
        document = usable_documents(self._sources, source, document).astype(self._document.dtype, copy=False)
        lengths = gather(self._sources, source, document, "lengths", np.int32)
        self._waiting_source = np.concatenate([self._waiting_source, source])
        self._waiting_document = np.concatenate([self._waiting_document, document])
        self._place(*self._packer.add(lengths))
        self._drawn += len(source)
        passed = max(0, min(self._drawn - self._reach - self._first_waiting, len(self._waiting_source)))
        self._waiting_source, self._waiting_document = self._waiting_source[passed:], self._waiting_document[passed:]
        self._first_waiting += passed

    def _place(self, order: NDArray[np.int64], row_start: NDArray[np.int64]) -> None:
        places = slice(self._offset + self._written, self._offset + self._written + len(order))
        self._source[places] = self._waiting_source[order - self._first_waiting]
        self._document[places] = self._waiting_document[order - self._first_waiting]
        self._row_starts.append(row_start + self._offset)
        self._written += len(order)

    def finish(self) -> tuple[NDArray[np.int64], SourceCounts]:
        """Write what is left; returns the row starts [R + 1] and the counts."""
        self._place(*self._packer.finish())
        row_start = np.concatenate(self._row_starts)
        np.save(self._directory / ROW_START, row_start)
        counts = count_rows(self._sources, self._source, self._document, row_start, self._seq_length)
        for array in (self._source, self._document):
            array.flush()  # type: ignore[attr-defined]
        return row_start, counts


def usable_documents(sources: list[OpenSource], source: NDArray[Any], document: NDArray[Any]) -> NDArray[Any]:
    """Numbers among the usable documents -> numbers in the index."""
    for number, opened in enumerate(sources):
        if opened.usable is not None:
            here = source == number
            document[here] = opened.usable[document[here]]
    return document


def gather(
    sources: list[OpenSource], source: NDArray[Any], document: NDArray[Any], what: str, dtype: Any
) -> NDArray[Any]:
    """Values of the documents' own arrays (`lengths` or `full_lengths`), in the order given."""
    starts = np.cumsum([0, *(opened.num_documents for opened in sources)], dtype=np.int64)
    if len(sources) > 32:  # one look-up in all sources' values together
        return np.concatenate([getattr(opened, what) for opened in sources])[starts[source] + document]
    values = np.empty(len(source), dtype=dtype)
    for number, opened in enumerate(sources):
        here = np.flatnonzero(source == number)
        values[here] = getattr(opened, what)[document[here]]
    return values


def count_rows(
    sources: list[OpenSource],
    source: NDArray[Any],
    document: NDArray[Any],
    row_start: NDArray[np.int64],
    seq_length: int,
) -> SourceCounts:
    """Counts of a packed order, block by block. A row's padding counts for the source of its last document."""
    counts = SourceCounts.zeros(len(sources))
    rows = max(1, BLOCK_DRAWS * (len(row_start) - 1) // max(1, len(source)))
    for first in range(0, len(row_start) - 1, rows):
        bounds = row_start[first : first + rows + 1]
        here = source[bounds[0] : bounds[-1]]
        numbers = document[bounds[0] : bounds[-1]]
        full = gather(sources, here, numbers, "full_lengths", np.int64)
        taken = np.minimum(full, seq_length)
        ends = np.cumsum(taken)[bounds[1:] - bounds[0] - 1]
        padding = seq_length - np.diff(ends, prepend=0)
        if padding.min(initial=0) < 0:
            raise DataError(
                f"row {first + int(padding.argmin())} exceeds seq_length {seq_length}. Build the blend again."
            )
        for total, values, places in (
            (counts.documents, np.ones(len(here)), here),
            (counts.tokens, taken, here),
            (counts.cut_documents, full > seq_length, here),
            (counts.cut_tokens, full - taken, here),
            (counts.padded_tokens, padding, here[bounds[1:] - bounds[0] - 1]),
        ):
            total += np.bincount(places, weights=values, minlength=len(sources)).astype(np.int64)
    return counts


def _write_megatron_indices(directory: Path) -> list[str]:
    """Megatron's pair for the packed documents: int16 dataset index and int64 sample index (document number)."""
    for name, original, dtype in (
        (MEGATRON_DATASET, ORDER_SOURCE, np.int16),
        (MEGATRON_SAMPLE, ORDER_DOCUMENT, np.int64),
    ):
        values = np.load(directory / original, mmap_mode="r")
        if dtype == np.int16 and len(values) and int(values.max()) > 32767:
            raise ConfigError("too many sources for Megatron's int16 index: need at most 32768. Leave the indices out.")
        target = np.lib.format.open_memmap(directory / name, mode="w+", dtype=dtype, shape=values.shape)
        for start in range(0, len(values), BLOCK_DRAWS):
            target[start : start + BLOCK_DRAWS] = values[start : start + BLOCK_DRAWS]
        target.flush()
    return [MEGATRON_DATASET, MEGATRON_SAMPLE]


def _describe(
    config: BlendConfig,
    sources: list[OpenSource],
    draws: Draws,
    prefix: Prefix,
    segments: list[Segment],
    row_start: NDArray[np.int64],
    counts: SourceCounts,
    inputs: dict[str, Any],
) -> dict[str, Any]:
    rows = len(row_start) - 1
    return {
        "order_version": ORDER_VERSION,
        "seq_length": config.seq_length,
        "seed": config.seed,
        "order_seed": draws.seed,
        "packing": to_plain(config.packing),
        "documents": int(row_start[-1]),
        "rows": rows,
        "tokens": int(counts.tokens.sum()),
        "padding_fraction": float(counts.padded_tokens.sum() / (rows * config.seq_length)),
        **prefix.manifest,
        "sources": [
            {
                "name": source.name,
                "path_prefix": source.path_prefix,
                "num_documents": source.num_documents,
                "usable_documents": source.num_usable,
                "untrained_when_cut": source.untrained_when_cut,
                "priority": float(draws.priorities[number]),
                "epochs": inputs["sources"].get(source.name, {}).get("epochs", 0),
                "drawn_documents": int(counts.documents[number]),
                "tokens": int(counts.tokens[number]),
                "cut_documents": int(counts.cut_documents[number]),
                "cut_tokens": int(counts.cut_tokens[number]),
                "padded_tokens": int(counts.padded_tokens[number]),
                "permutation": {
                    "seed": int(draws.permutation_seeds[number]),
                    "stream": int(draws.permutation_streams[number]),
                    "first_draw": int(draws.first_draw[number]),
                    "held_back": draws.held(number).tolist(),
                    "num_draws": int(draws.num_draws[number]),
                },
                "index": source.fingerprint,
            }
            for number, source in enumerate(sources)
        ],
        "segments": [segment.to_plain() for segment in segments],
        "inputs": inputs,
        "inputs_sha256": fingerprint(inputs),
    }
