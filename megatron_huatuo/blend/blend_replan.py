"""Re-plans a blend in mid-run: what was consumed stays byte for byte, the rest is drawn again under new settings.

Invariant: no document is drawn twice in an epoch. What the run consumed is found by replaying the parent's packing, so the
draws that the window held back return to the pool.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.blend_build import DEFAULT_OPTIONS, describe_inputs, is_built
from megatron_huatuo.blend.blend_settings import BlendConfig, BlendSource, BuildOptions, PackingConfig
from megatron_huatuo.blend.blend_sources import OpenSource, open_sources, usable_documents, values_of_documents
from megatron_huatuo.blend.blend_write import BLOCK_DRAWS, BlendJob, Prefix, write_blend
from megatron_huatuo.blend.order_draws import ORDER_VERSION, Draws, draws_of_epochs
from megatron_huatuo.blend.order_plan import OrderPlan
from megatron_huatuo.blend.row_packing import PACKING_VERSION, RowPacker
from megatron_huatuo.blend.schedule_counts import Segment
from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.storage.manifest import fingerprint
from megatron_huatuo.storage.run_files import CHECKPOINTS, blend_of_run, complete_checkpoints, read_training_state

_log = get_logger(__name__)


def replan_blend(
    run_dir: str | os.PathLike[str],
    config: BlendConfig,
    output: str | os.PathLike[str],
    options: BuildOptions = DEFAULT_OPTIONS,
    *,
    consumed_rows: int | None = None,
) -> Path:
    """Draw the rest of a run's blend again under new priorities, epochs, window or sources.

    run_dir: a training run; its config.yaml names the blend, its newest complete checkpoint the consumed rows.
    consumed_rows: rows to keep, where there is no checkpoint to tell. seq_length must stay; sources that the new
    configuration leaves out give no further documents; `epochs` counts the documents already drawn.
    Raises: ConfigError, DataError or IntegrityError naming what does not fit.
    """
    blend = BlendReader(blend_of_run(run_dir))
    rows = newest_consumed_rows(run_dir) if consumed_rows is None else consumed_rows
    parent = Parent(blend, rows)
    if Path(output).exists() and os.path.samefile(output, blend.directory):
        raise ConfigError(f"wrong --output: got the run's own blend {blend.directory}, need another directory")
    merged, sources = merge_sources(config, parent)
    inputs = describe_inputs(merged, sources, options)
    inputs["parent_sha256"], inputs["consumed_rows"] = blend.sha256, rows
    if is_built(Path(output), inputs):
        return Path(output)
    # The consumed part has shown what the old random numbers were: the rest needs others.
    order_seed = int(fingerprint([config.seed, blend.sha256, rows])[:16], 16)
    draws = remaining_draws(merged, order_seed, sources, parent, options.num_threads)
    prefix = Prefix(
        blend.order_source[: parent.entries],
        blend.order_document[: parent.entries],
        blend.row_start[:rows],
        parent.kept_segments(),
        {"parent_sha256": blend.sha256, "consumed_rows": rows},
    )
    return write_blend(BlendJob(merged, sources, draws, inputs, prefix), output, options)


def newest_consumed_rows(run_dir: str | os.PathLike[str]) -> int:
    """Rows that a run's newest complete checkpoint has consumed."""
    found = complete_checkpoints(Path(run_dir) / CHECKPOINTS)
    if not found:
        raise ConfigError(f"run has no complete checkpoint: {run_dir}. Say how many rows to keep: --consumed-rows N.")
    return int(read_training_state(found[0])["consumed_train_samples"])


@dataclass(frozen=True)
class Parent:
    """The blend that a run has consumed `rows` rows of.

    Raises: ConfigError when the blend has fewer rows, or was re-planned at a later one; IntegrityError when a file is not
    as it was written, or this version cannot go on with its order.
    """

    blend: BlendReader
    rows: int

    def __post_init__(self) -> None:
        manifest, directory = self.blend.manifest, self.blend.directory
        self.blend.verify()
        for key, needed in (("order_version", ORDER_VERSION), ("packing_version", PACKING_VERSION)):
            if (found := manifest.get(key, 1)) != needed:
                raise IntegrityError(
                    f"blend has another {key}: got {found}, need {needed} ({directory}). "
                    "Re-plan it with the version of megatron_huatuo that wrote it."
                )
        first = int(manifest.get("consumed_rows", 0))
        if not first <= self.rows <= len(self.blend):
            raise ConfigError(f"wrong consumed rows: got {self.rows}, need {first} to {len(self.blend)} ({directory})")

    @property
    def entries(self) -> int:
        """Documents in the consumed rows."""
        return int(self.blend.row_start[self.rows])

    @property
    def own_first_entry(self) -> int:
        """Documents that the parent itself took over from its own parent."""
        return int(self.blend.manifest["segments"][-1]["first_entry"])

    def kept_segments(self) -> list[Segment]:
        """Segments of the consumed part."""
        segments = [Segment.from_plain(content) for content in self.blend.manifest["segments"]]
        return [segment for segment in segments if segment.first_entry < self.entries]

    def draws(self) -> Draws:
        """What the parent's own part was drawn from."""
        states = [source["permutation"] for source in self.blend.manifest["sources"]]
        return Draws(
            num_documents=np.array(
                [source["usable_documents"] for source in self.blend.manifest["sources"]], dtype=np.int64
            ),
            num_draws=np.array([state["num_draws"] for state in states], dtype=np.int64),
            priorities=np.array([source["priority"] for source in self.blend.manifest["sources"]], dtype=np.float64),
            seed=int(self.blend.manifest["order_seed"]),
            permutation_seeds=np.array([state["seed"] for state in states], dtype=np.uint64),
            permutation_streams=np.array([state["stream"] for state in states], dtype=np.uint32),
            first_draw=np.array([state["first_draw"] for state in states], dtype=np.int64),
            held_back=tuple(np.array(state["held_back"], dtype=np.int64) for state in states),
        )


def merge_sources(config: BlendConfig, parent: Parent) -> tuple[BlendConfig, list[OpenSource]]:
    """The parent's sources in their old places, then the new ones; sources left out keep their place with epochs 0."""
    if config.seq_length != parent.blend.manifest["seq_length"]:
        raise ConfigError(
            f"seq_length cannot change in mid-run: got {config.seq_length}, need {parent.blend.manifest['seq_length']}"
        )
    wanted = {source.name: source for source in config.sources}
    merged = []
    for old in parent.blend.manifest["sources"]:
        new = wanted.pop(old["name"], None)
        if new is None:
            _log.info("source %r gives no further documents: the new configuration leaves it out", old["name"])
            new = BlendSource(old["name"], old["path_prefix"], priority=old["priority"], epochs=0)
        merged.append(new)
    merged += wanted.values()
    opened = open_sources(replace(config, sources=tuple(merged)))
    for source, old in zip(opened, parent.blend.manifest["sources"], strict=False):
        if source.fingerprint != old["index"]:
            raise DataError(
                f"source {source.name!r} changed since the run began: {source.path_prefix} has another content than "
                f"{old['path_prefix']} had. Re-plan with the index of the run."
            )
    return replace(config, sources=tuple(merged)), opened


def remaining_draws(
    config: BlendConfig, order_seed: int, sources: list[OpenSource], parent: Parent, num_threads: int | None
) -> Draws:
    """What is left to draw: held-back documents first, then each source's own sequence from where it stood."""
    used = parent.draws()
    packing = PackingConfig(**parent.blend.manifest["packing"])
    drawn, held = replay(used, sources[: used.num_sources], parent, packing.window, num_threads)
    old_counts = np.bincount(parent.blend.order_source[: parent.entries], minlength=len(sources)).astype(np.int64)
    seeds, streams, first, budget, held_back = [], [], [], [], []
    taken = {(int(s), int(t)) for s, t in zip(used.permutation_seeds, used.permutation_streams, strict=True)}
    for number, (settings, source) in enumerate(zip(config.sources, sources, strict=True)):
        total = draws_of_epochs(source.num_usable, settings.epochs, f"source {source.name!r}")
        left = max(0, total - int(old_counts[number]))
        if number < used.num_sources:
            if settings.epochs and total < old_counts[number]:
                _log.warning(
                    "source %r has given %d documents already, more than the %d of its new epochs: it gives no further ones",
                    source.name, old_counts[number], total,
                )  # fmt: skip
            seeds.append(int(used.permutation_seeds[number]))
            streams.append(int(used.permutation_streams[number]))
            first.append(drawn[number])
            held_back.append(held[number])
        else:
            stream = number
            while (config.seed, stream) in taken:
                stream += 1
            taken.add((config.seed, stream))
            seeds.append(config.seed)
            streams.append(stream)
            first.append(0)
            held_back.append(np.empty(0, dtype=np.int64))
        held_back[-1] = held_back[-1][:left]
        budget.append(left)
    return Draws(
        num_documents=np.array([source.num_usable for source in sources], dtype=np.int64),
        num_draws=np.array(budget, dtype=np.int64),
        priorities=np.array(config.priorities, dtype=np.float64),
        seed=order_seed,
        permutation_seeds=np.array(seeds, dtype=np.uint64),
        permutation_streams=np.array(streams, dtype=np.uint32),
        first_draw=np.array(first, dtype=np.int64),
        held_back=tuple(held_back),
    )


def replay(
    used: Draws, sources: list[OpenSource], parent: Parent, window: int, num_threads: int | None
) -> tuple[list[int], list[NDArray[np.int64]]]:
    """Draw and pack the parent's own part again up to the consumed row.

    Returns, for each source, the draw number at which its sequence goes on and the documents (numbers among the usable
    ones) that were drawn before it but not consumed.
    Raises: IntegrityError when the parent's files do not follow from its manifest.
    """
    consumed = parent.entries - parent.own_first_entry
    wanted = min(used.total, consumed + window)  # a consumed draw is less than `window` places from its packed place
    plan = OrderPlan(used, num_threads=num_threads)
    packer = RowPacker(int(parent.blend.manifest["seq_length"]), window)
    drawn_source, drawn_usable, order = [], [], []
    with progress(total=wanted, description="replay", unit="document", unit_scale=True) as bar:
        for start in range(0, wanted, BLOCK_DRAWS):
            source, document = plan.order(start, min(start + BLOCK_DRAWS, wanted), num_threads=num_threads)
            drawn_source.append(source)
            drawn_usable.append(document)
            numbers = usable_documents(sources, source, document.copy())
            order.append(packer.add(values_of_documents(sources, source, numbers, "lengths", np.int32))[0])
            bar.update(len(source))
    if wanted == used.total:
        order.append(packer.finish()[0])
    source = np.concatenate([*drawn_source, np.empty(0, dtype=np.uint8)])
    usable = np.concatenate([*drawn_usable, np.empty(0, dtype=np.uint32)])
    placed = np.concatenate([*order, np.empty(0, dtype=np.int64)])[:consumed]
    own = slice(parent.own_first_entry, parent.entries)
    numbers = usable_documents(sources, source[placed], usable[placed])
    if not (
        np.array_equal(source[placed], parent.blend.order_source[own])
        and np.array_equal(numbers, parent.blend.order_document[own])
    ):
        raise IntegrityError(f"blend does not follow from its manifest: {parent.blend.directory}. Restore it.")
    was_consumed = np.zeros(len(source), dtype=bool)
    was_consumed[placed] = True
    next_draw, held_back = [], []
    for number in range(used.num_sources):
        here = np.flatnonzero(source == number)
        last = (
            int(np.flatnonzero(was_consumed[here]).max(initial=-1)) + 1
        )  # draws of the source up to its last consumed
        old = used.held(number)
        kept = usable[here[:last][~was_consumed[here[:last]]]].astype(np.int64)
        held_back.append(np.concatenate([kept, old[last:]]))
        next_draw.append(int(used.first_draw[number]) + max(0, last - len(old)))
    return next_draw, held_back
