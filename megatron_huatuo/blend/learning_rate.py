"""The learning rate over a run, and how much of it each source of a blend receives.

The priority decides when a source is drawn, the schedule decides how much it moves the model then. Both are known before
a run, so the figure is exact: no training is needed for it. The formula is megatron-core's OptimizerParamScheduler
(0.16: linear warm-up from 0, then the style), which applies it in training; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.config import at_least, one_of
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.targets import DocumentsInRows

STYLES = ("cosine", "linear", "constant", "wsd")
RECIPE_DECAY_PASSES = 1.35
LOW_SHARE = 0.2
"""A source whose mean rate is below this share of the peak is named in a warning."""
_TENTH = 0.1
_BLOCK = 1 << 22


@dataclass
class ScheduleConfig:
    """Learning rate by step: linear warm-up, then what `style` says."""

    style: str = "cosine"
    """cosine or linear (down to min_lr over decay_passes), constant, or wsd (constant, then a linear decay at the end)."""
    warmup_fraction: float = 0.01
    """Share of the schedule's steps that the warm-up takes."""
    decay_passes: float | None = None
    """With cosine and linear: passes over the blend until min_lr; null: 1.35, the recipe's, so that the sources that are
    drawn last still learn. A run is one pass."""
    decay_iters: int | None = None
    """Steps of the schedule, in the place of decay_passes, or of the one pass of constant and wsd."""
    min_lr: float = 0.0
    """Lowest rate."""
    wsd_decay_fraction: float = 0.1
    """With wsd: share of the schedule's steps that the decay takes."""

    def validate(self, peak_lr: float) -> None:
        """Raises: ConfigError naming the key and the values that would work."""
        one_of("schedule.style", self.style, STYLES)
        at_least("schedule.min_lr", self.min_lr, 0)
        at_least("schedule.decay_iters", self.decay_iters, 1)
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(
                f"wrong schedule.warmup_fraction: got {self.warmup_fraction}, need 0 or more and below 1."
            )
        if self.min_lr > peak_lr:
            raise ConfigError(f"wrong schedule.min_lr: got {self.min_lr}, need at most optimizer.lr = {peak_lr}.")
        if self.decay_passes is not None:
            self._check_decay_passes(self.decay_passes)
        if self.style != "wsd" and self.wsd_decay_fraction != ScheduleConfig().wsd_decay_fraction:
            raise ConfigError(
                f"wrong schedule.wsd_decay_fraction: got {self.wsd_decay_fraction} with style {self.style}, which does not "
                "use it. Set schedule.style to wsd, or leave it out."
            )
        if not 0 < self.wsd_decay_fraction <= 1 - self.warmup_fraction:
            raise ConfigError(
                f"wrong schedule.wsd_decay_fraction: got {self.wsd_decay_fraction}, need above 0 and at most "
                f"{1 - self.warmup_fraction:g}: the decay begins after the warm-up."
            )

    def _check_decay_passes(self, passes: float) -> None:
        if self.style not in ("cosine", "linear"):
            raise ConfigError(
                f"wrong schedule.decay_passes: got {passes} with style {self.style}, which does not use it. Leave it out."
            )
        if self.decay_iters is not None:
            raise ConfigError(
                f"wrong schedule.decay_passes: got {passes} beside decay_iters = {self.decay_iters}, need one of the two."
            )
        if not 1 <= passes < math.inf:
            raise ConfigError(
                f"wrong schedule.decay_passes: got {passes}, need 1 or more: a run is one pass, and would end at min_lr "
                "before its last rows. More passes are epochs of the sources: set them in the blend."
            )

    def describe(self) -> str:
        """In a few words, for a picture."""
        if self.decay_iters is not None:
            return f"{self.style} over {self.decay_iters:,} steps"
        over = (
            f" over {self.decay_passes or RECIPE_DECAY_PASSES:g} passes" if self.style in ("cosine", "linear") else ""
        )
        return f"{self.style}{over}" + (f" to {self.min_lr:g}" if self.min_lr else "")

    def span(self, steps_per_pass: int) -> int:
        """Steps that the schedule spans, at least 1; a run may end before them."""
        if self.decay_iters is not None:
            return self.decay_iters
        passes = 1.0 if self.style in ("constant", "wsd") else (self.decay_passes or RECIPE_DECAY_PASSES)
        return max(1, math.floor(passes * steps_per_pass + 1e-9))

    def warmup_steps(self, span: int) -> int:
        """Steps until the peak."""
        return min(round(self.warmup_fraction * span), max(span - 1, 0))

    def wsd_steps(self, span: int) -> int:
        """With wsd: steps of the decay."""
        return max(1, min(round(self.wsd_decay_fraction * span), span - self.warmup_steps(span)))

    def rates(self, steps: NDArray[np.integer], peak_lr: float, span: int) -> NDArray[np.float64]:
        """Rate of the steps with these numbers (from 0), float64 of the shape of `steps`; beyond `span` it stays."""
        at = np.asarray(steps, dtype=np.float64)
        warmup = self.warmup_steps(span)
        share = np.ones_like(at)
        if self.style in ("cosine", "linear"):
            ratio = np.clip((at - warmup) / max(1, span - warmup), 0.0, 1.0)
            share = 0.5 * (1.0 + np.cos(np.pi * ratio)) if self.style == "cosine" else 1.0 - ratio
        elif self.style == "wsd":
            decay = self.wsd_steps(span)
            share = 1.0 - np.clip((at - (span - decay)) / decay, 0.0, 1.0)
        rates = self.min_lr + share * (peak_lr - self.min_lr)
        return np.where(at <= warmup, peak_lr * at / warmup, rates) if warmup else rates


@dataclass(frozen=True)
class SourceRate:
    """What one source receives, as shares of the peak rate; NaN for a source that gives nothing."""

    mean_over_draws: float
    share_below_tenth: float
    """Share of its draws whose rate is below a tenth of the peak."""
    mean_over_tokens: float | None = None
    """Weighted by the trained tokens of each document; None where they are not known."""

    def to_plain(self) -> dict[str, float | None]:
        """As JSON values; NaN becomes null."""
        values = {
            "mean_over_tokens": self.mean_over_tokens,
            "mean_over_draws": self.mean_over_draws,
            "share_below_tenth": self.share_below_tenth,
        }
        return {key: None if value is None or math.isnan(value) else value for key, value in values.items()}


def learning_rate_by_source(
    schedule: ScheduleConfig,
    order_source: NDArray[Any],
    row_start: NDArray[np.int64],
    num_sources: int,
    global_batch_size: int,
    *,
    peak_lr: float = 1.0,
    train_iters: int | None = None,
    order_document: NDArray[Any] | None = None,
    trained_tokens: Sequence[NDArray[np.integer]] | None = None,
) -> list[SourceRate]:
    """Mean rate of each source over a drawn blend [S], exact, in the order of the sources.

    order_source, order_document: uint [N], documents in packed order. row_start: int64 [R + 1]. trained_tokens: for each
    source the trained tokens of its documents, as they stand in a row; needs order_document.
    train_iters: steps of the run; null: the whole pass. Cost: O(N), a block of documents in memory.
    """
    rows = len(row_start) - 1
    steps_per_pass = -(-rows // global_batch_size)
    steps = min(train_iters or steps_per_pass, steps_per_pass)
    shares = schedule.rates(np.arange(max(steps, 1)), peak_lr, schedule.span(max(steps_per_pass, 1))) / (peak_lr or 1.0)
    draws, rate, low = np.zeros(num_sources), np.zeros(num_sources), np.zeros(num_sources)
    tokens, rate_of_tokens = np.zeros(num_sources), np.zeros(num_sources)
    last = int(row_start[min(rows, steps * global_batch_size)])
    for first in range(0, last, _BLOCK):
        stop = min(first + _BLOCK, last)
        source = np.asarray(order_source[first:stop])
        row = np.searchsorted(row_start, np.arange(first, stop), side="right") - 1
        share = shares[row // global_batch_size]
        draws += np.bincount(source, minlength=num_sources)
        rate += np.bincount(source, weights=share, minlength=num_sources)
        low += np.bincount(source, weights=share < _TENTH, minlength=num_sources)
        if trained_tokens is not None and order_document is not None:
            weight = _tokens_of(source, np.asarray(order_document[first:stop]), trained_tokens)
            tokens += np.bincount(source, weights=weight, minlength=num_sources)
            rate_of_tokens += np.bincount(source, weights=weight * share, minlength=num_sources)
    with np.errstate(invalid="ignore", divide="ignore"):
        over_draws, below, over_tokens = rate / draws, low / draws, rate_of_tokens / tokens
    known = trained_tokens is not None
    return [
        SourceRate(float(over_draws[i]), float(below[i]), float(over_tokens[i]) if known else None)
        for i in range(num_sources)
    ]


def _tokens_of(
    source: NDArray[Any], document: NDArray[Any], trained_tokens: Sequence[NDArray[np.integer]]
) -> NDArray[np.float64]:
    found = np.zeros(len(source))
    for number, counts in enumerate(trained_tokens):
        here = source == number
        found[here] = counts[document[here]]
    return found


@dataclass(frozen=True)
class BlendRates:
    """A schedule over a blend, and what each of its sources receives."""

    schedule: ScheduleConfig
    peak_lr: float
    steps_per_pass: int
    names: list[str]
    rates: list[SourceRate]

    @classmethod
    def of_blend(
        cls,
        blend: BlendReader,
        schedule: ScheduleConfig,
        global_batch_size: int,
        *,
        peak_lr: float = 1.0,
        train_iters: int | None = None,
    ) -> BlendRates:
        """Exact over draws and trained tokens; opens the headers of the sources' indexes.

        Raises: IntegrityError when an index is missing or damaged.
        """
        indexes = [DocumentsInRows(IndexedReader(prefix), blend.seq_length) for prefix in blend.path_prefixes]
        rates = learning_rate_by_source(
            schedule,
            blend.order_source,
            blend.row_start,
            len(blend.source_names),
            global_batch_size,
            peak_lr=peak_lr,
            train_iters=train_iters,
            order_document=blend.order_document,
            trained_tokens=[documents.trained_tokens() for documents in indexes],
        )
        steps = -(-len(blend) // global_batch_size)
        return cls(schedule, peak_lr, max(steps, 1), list(blend.source_names), rates)

    def shares(self, progress: NDArray[np.floating]) -> NDArray[np.float64]:
        """Rate at a fraction of the pass, as a share of the peak."""
        steps = np.floor(np.asarray(progress) * self.steps_per_pass).astype(np.int64)
        return self.schedule.rates(steps, self.peak_lr, self.schedule.span(self.steps_per_pass)) / (self.peak_lr or 1.0)

    def to_plain(self) -> dict[str, dict[str, float | None]]:
        """{source: {mean_over_tokens, mean_over_draws, share_below_tenth}} as JSON values."""
        return {name: rate.to_plain() for name, rate in zip(self.names, self.rates, strict=True)}

    def warn_of_low_rates(self) -> list[str]:
        """Names of the sources that receive less than a fifth of the peak, said in one warning."""
        low = {
            name: rate.mean_over_draws
            for name, rate in zip(self.names, self.rates, strict=True)
            if rate.mean_over_draws < LOW_SHARE
        }
        if low:
            get_logger(__name__).warning(
                "these sources are drawn when the learning rate is low, and receive less than a fifth of its peak on "
                "average: %s. A longer decay (schedule.decay_passes), a floor (schedule.min_lr), style wsd, or a higher "
                "priority helps.",
                ", ".join(f"{name} {share:.2f}" for name, share in low.items()),
            )
        return list(low)

    def describe(self) -> list[str]:
        """A table for a person: one line for each source."""
        width = max([len("learning rate received"), *map(len, self.names)])
        head = f"{'learning rate received':<{width}}  {'by tokens':>9}  {'by draws':>8}  {'draws under a tenth of the peak':>31}"
        lines = [head]
        for name, rate in zip(self.names, self.rates, strict=True):
            tokens = "-" if rate.mean_over_tokens is None else f"{rate.mean_over_tokens:.3f}"
            lines.append(f"{name:<{width}}  {tokens:>9}  {rate.mean_over_draws:>8.3f}  {rate.share_below_tenth:>30.1%}")
        return lines
