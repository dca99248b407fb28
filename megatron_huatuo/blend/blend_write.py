"""Writes a blend directory as a stream: draws go in, packed rows, counts, schedule and manifest come out.

Invariant: memory is that of the lengths, the plan and one block of draws; the output goes through memory maps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.blend_settings import BlendConfig, BuildOptions
from megatron_huatuo.blend.blend_sources import OpenSource, usable_documents, values_of_documents, why_no_document
from megatron_huatuo.blend.learning_rate import BlendRates, ScheduleConfig, learning_rate_by_source
from megatron_huatuo.blend.order_draws import ORDER_VERSION, Draws
from megatron_huatuo.blend.order_plan import OrderPlan, document_dtype, source_dtype
from megatron_huatuo.blend.row_packing import PACKING_VERSION, RowPacker
from megatron_huatuo.blend.schedule_counts import Schedule, Segment
from megatron_huatuo.blend.schedule_picture import write_schedule
from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.arrays import map_array
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.blend_files import BLEND_KIND, ORDER_DOCUMENT, ORDER_SOURCE, ROW_START
from megatron_huatuo.storage.manifest import fingerprint, write_manifest

MEGATRON_DATASET, MEGATRON_SAMPLE = "megatron_dataset_index.npy", "megatron_dataset_sample_index.npy"
BLOCK_DRAWS = 1 << 20
NOTABLE_LOSS = 0.05
"""A source that loses more of its tokens at the ends of rows is named."""

_log = get_logger(__name__)


def _nothing() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Prefix:
    """What a re-planned blend keeps of its parent; a fresh one keeps nothing."""

    source: NDArray[Any] = field(default_factory=_nothing)
    """Packed order of the rows that were consumed [E]."""
    document: NDArray[Any] = field(default_factory=_nothing)
    row_start: NDArray[np.int64] = field(default_factory=_nothing)
    """Starts of those rows [consumed_rows]."""
    segments: list[Segment] = field(default_factory=list)
    """What those rows were drawn from."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """parent_sha256 and consumed_rows."""


@dataclass(frozen=True)
class BlendJob:
    """One blend that is to be written, with all that decides its bytes."""

    config: BlendConfig
    sources: list[OpenSource]
    draws: Draws
    inputs: dict[str, Any]
    """What decided the blend, for comparison when it is built again (blend_build.py)."""
    prefix: Prefix = field(default_factory=Prefix)


def write_blend(job: BlendJob, output: str | os.PathLike[str], options: BuildOptions) -> Path:
    """Draw, pack and write one blend; returns the directory. Raises: DataError when there is nothing to draw."""
    names = [source.name for source in job.sources]
    _warn_of_empty_sources(job)
    plan = OrderPlan(job.draws, num_threads=options.num_threads)
    with atomic_directory(output, replace=True) as directory:
        writer = BlendWriter(directory, job)
        for source, document in _blocks(plan, options):
            writer.add(source, document)
        row_start, counts = writer.finish()
        segments = [*job.prefix.segments, Segment(len(job.prefix.source), job.draws.num_draws, job.draws.priorities)]
        schedule = Schedule.of_rows(names, directory / ORDER_SOURCE, segments)
        files = [
            ORDER_SOURCE,
            ORDER_DOCUMENT,
            ROW_START,
            *write_schedule(schedule, directory, _default_rates(directory, names)),
        ]
        if options.megatron_indices:
            files += _write_megatron_indices(directory)
        _warn_of_losses(job, counts)
        content = _describe(job, segments, row_start, counts)
        write_manifest(directory, BLEND_KIND, content, files)
    _log.info(
        "%s: %d documents of %d sources in %d rows of %d tokens, %.2f %% padding", output, content["documents"],
        len(names), content["rows"], job.config.seq_length, 100 * content["padding_fraction"],
    )  # fmt: skip
    return Path(output)


def _default_rates(directory: Path, names: list[str]) -> BlendRates:
    """What each source would receive by the default schedule with steps of one row; a run's own settings come later."""
    row_start, schedule = map_array(directory / ROW_START), ScheduleConfig()
    rates = learning_rate_by_source(schedule, map_array(directory / ORDER_SOURCE), row_start, len(names), 1)
    return BlendRates(schedule, 1.0, max(1, len(row_start) - 1), names, rates)


def _warn_of_empty_sources(job: BlendJob) -> None:
    """Say which sources give no document, and why. Raises: DataError when none gives any."""
    drawn = job.draws.num_draws + np.bincount(job.prefix.source, minlength=len(job.sources))
    reasons = {
        job.sources[number].name: why_no_document(
            job.config.sources[number], job.sources[number], job.config.seq_length
        )
        for number in np.flatnonzero(drawn == 0).tolist()
    }
    if not drawn.any():
        name, reason = next(iter(reasons.items()))
        raise DataError(f"no document to blend: every source has zero draws. Source {name!r}: {reason}")
    for name, reason in reasons.items():
        _log.warning("source %r gives no document: %s", name, reason)


def _warn_of_losses(job: BlendJob, counts: SourceCounts) -> None:
    """Say which sources lose documents or a notable part of their tokens because rows are too short for them."""
    for number, source in enumerate(job.sources):
        if source.untrained_when_cut and source.num_usable:
            _log.warning(
                "source %r: %d of its %d documents are left out, as a row of %d tokens ends before their first trained one",
                source.name, source.untrained_when_cut, source.num_documents, job.config.seq_length,
            )  # fmt: skip
        lost = int(counts.cut_tokens[number])
        if lost > NOTABLE_LOSS * (lost + int(counts.tokens[number])):
            _log.warning(
                "source %r loses %.0f %% of its tokens: %d documents are cut to rows of %d", source.name,
                100 * lost / (lost + counts.tokens[number]), counts.cut_documents[number], job.config.seq_length,
            )  # fmt: skip


def _blocks(plan: OrderPlan, options: BuildOptions) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    with progress(total=plan.total, description="blend", unit="document", unit_scale=True) as bar:
        for start in range(0, plan.total, BLOCK_DRAWS):
            stop = min(start + BLOCK_DRAWS, plan.total)
            yield plan.order(start, stop, num_threads=options.num_threads, device=options.device)
            bar.update(stop - start)


class BlendWriter:
    """Takes draws, gives packed entries to the memory-mapped outputs, and counts."""

    def __init__(self, directory: Path, job: BlendJob) -> None:
        config, sources, prefix = job.config, job.sources, job.prefix
        self._sources, self._seq_length = sources, config.seq_length
        self._directory = directory
        self._total = job.draws.total + len(prefix.source)
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
        lengths = values_of_documents(self._sources, source, document, "lengths", np.int32)
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
        counts = SourceCounts.of_rows(self._sources, self._source, self._document, row_start, self._seq_length)
        for array in (self._source, self._document):
            array.flush()  # type: ignore[attr-defined]
        return row_start, counts


@dataclass(frozen=True)
class SourceCounts:
    """What became of each source [S]: int64 counts over the whole blend."""

    documents: NDArray[np.int64]
    tokens: NDArray[np.int64]
    cut_documents: NDArray[np.int64]
    cut_tokens: NDArray[np.int64]
    padded_tokens: NDArray[np.int64]
    """A row's padding counts for the source of its last document."""

    @classmethod
    def of_rows(
        cls,
        sources: list[OpenSource],
        source: NDArray[Any],
        document: NDArray[Any],
        row_start: NDArray[np.int64],
        seq_length: int,
    ) -> SourceCounts:
        """Count a packed order, block by block."""
        counts = cls(*(np.zeros(len(sources), dtype=np.int64) for _ in range(5)))
        rows = max(1, BLOCK_DRAWS * (len(row_start) - 1) // max(1, len(source)))
        for first in range(0, len(row_start) - 1, rows):
            bounds = row_start[first : first + rows + 1]
            here = source[bounds[0] : bounds[-1]]
            numbers = document[bounds[0] : bounds[-1]]
            full = values_of_documents(sources, here, numbers, "full_lengths", np.int64)
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
        values = map_array(directory / original)
        if dtype == np.int16 and len(values) and int(values.max()) > 32767:
            raise ConfigError("too many sources for Megatron's int16 index: need at most 32768. Leave the indices out.")
        target = np.lib.format.open_memmap(directory / name, mode="w+", dtype=dtype, shape=values.shape)
        for start in range(0, len(values), BLOCK_DRAWS):
            target[start : start + BLOCK_DRAWS] = values[start : start + BLOCK_DRAWS]
        target.flush()
    return [MEGATRON_DATASET, MEGATRON_SAMPLE]


def _describe(
    job: BlendJob, segments: list[Segment], row_start: NDArray[np.int64], counts: SourceCounts
) -> dict[str, Any]:
    """Content of the manifest."""
    config, draws, inputs, rows = job.config, job.draws, job.inputs, len(row_start) - 1
    return {
        "order_version": ORDER_VERSION,
        "packing_version": PACKING_VERSION,
        "seq_length": config.seq_length,
        "seed": config.seed,
        "order_seed": draws.seed,
        "packing": to_plain(config.packing),
        "documents": int(row_start[-1]),
        "rows": rows,
        "tokens": int(counts.tokens.sum()),
        "padding_fraction": float(counts.padded_tokens.sum() / (rows * config.seq_length)),
        **job.prefix.manifest,
        "sources": [
            {
                "name": source.name,
                "path_prefix": source.path_prefix,
                "num_documents": source.num_documents,
                **({} if source.num_texts is None else {"num_texts": source.num_texts}),
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
            for number, source in enumerate(job.sources)
        ],
        "segments": [segment.to_plain() for segment in segments],
        "inputs": inputs,
        "inputs_sha256": fingerprint(inputs),
    }
