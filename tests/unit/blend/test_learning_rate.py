"""What each source receives of the learning rate: megatron-core's schedule, and the table of the recipe."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest

from megatron_huatuo.blend import priority_order
from megatron_huatuo.blend.learning_rate import (
    BlendRates,
    ScheduleConfig,
    SourceRate,
    learning_rate_by_source,
)
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.blend_files import BlendReader

# Nine sources of the recipe, in two languages each; the levels of beta are web 5, literature 4, encyclopedia 3, books 2, SFT 0.
SIZES = np.array([640_621, 367_000, 827_000, 168_000, 398_000, 142_000, 1_950_000, 840_000, 142_248])
LEVELS = np.array([5, 5, 4, 4, 3, 3, 2, 2, 0])
EPOCHS = [1.0] * 8 + [3.0]
GROUPS = {"web": (0, 1), "literature": (2, 3), "encyclopedia": (4, 5), "books": (6, 7), "sft": (8,)}
ROWS_A_STEP = 128


def received(beta: float, schedule: ScheduleConfig, passes: int = 1) -> dict[str, tuple[float, float]]:
    """{group: (mean share of the peak, share of draws below a tenth)}, one document a row, as a run of `passes` draws it."""
    source, _ = priority_order(SIZES, beta**LEVELS, 7, epochs=EPOCHS)
    whole = np.concatenate([source] * passes)
    rates = learning_rate_by_source(schedule, whole, np.arange(len(whole) + 1), len(SIZES), ROWS_A_STEP)
    draws = np.bincount(whole, minlength=len(SIZES))
    found = {}
    for name, members in GROUPS.items():
        weights = draws[list(members)]
        mean = np.average([rates[i].mean_over_draws for i in members], weights=weights)
        found[name] = (float(mean), float(np.average([rates[i].share_below_tenth for i in members], weights=weights)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beta", "schedule", "passes", "expected", "sft_below_tenth"),
    [
        (2.0, ScheduleConfig(decay_passes=1.0), 1, (0.84, 0.70, 0.53, 0.36, 0.12), 0.73),
        (2.0, ScheduleConfig(), 1, (0.90, 0.82, 0.70, 0.56, 0.32), 0.0),
        # The launcher's two passes are two of ours in a row, so the cosine spans 2.35 / 2 of them.
        (2.0, ScheduleConfig(decay_passes=2.35 / 2, warmup_fraction=0.005), 2, (0.72, 0.67, 0.60, 0.53, 0.42), 0.32),
        (
            2.0,
            ScheduleConfig(decay_passes=1.0, min_lr=0.1),
            1,
            (0.85, 0.73, 0.58, 0.42, 0.21),
            0.0,
        ),
        (1.5, ScheduleConfig(decay_passes=1.0), 1, (0.74, 0.63, 0.52, 0.41, 0.23), 0.57),
        (3.0, ScheduleConfig(decay_passes=1.0), 1, (0.90, 0.77, 0.56, 0.32, 0.06), 0.87),
        (1.0, ScheduleConfig(decay_passes=1.0), 1, (0.50, 0.50, 0.50, 0.50, 0.50), 0.20),
    ],
    ids=["to-zero", "recipe", "launcher", "floor", "beta-1.5", "beta-3", "uniform"],
)
def test_the_table_of_the_recipe_follows_from_drawn_blends(
    beta: float, schedule: ScheduleConfig, passes: int, expected: tuple[float, ...], sft_below_tenth: float
) -> None:
    """The table has two digits, so 0.005 of rounding are its own."""
    found = received(beta, schedule, passes)
    for (name, (mean, _)), printed in zip(found.items(), expected, strict=True):
        assert abs(mean - printed) <= 0.005 + 0.005, (name, mean, printed)
    assert abs(found["sft"][1] - sft_below_tenth) <= 0.005 + 0.005


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(),
        ScheduleConfig(decay_passes=1.0, min_lr=2e-5, warmup_fraction=0.1),
        ScheduleConfig(style="linear", warmup_fraction=0.05),
        ScheduleConfig(style="constant", warmup_fraction=0.2),
        ScheduleConfig(style="wsd", wsd_decay_fraction=0.25, min_lr=1e-5),
        ScheduleConfig(decay_iters=30, warmup_fraction=0.0),
    ],
    ids=lambda schedule: schedule.style,
)
def test_rates_are_those_that_megatron_core_applies(schedule: ScheduleConfig) -> None:
    pytest.importorskip("megatron.core")
    import torch

    from megatron_huatuo.train.setup import build_schedule
    from megatron_huatuo.train.train_config import TrainConfig

    config = TrainConfig(schedule=schedule)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    span = schedule.span(100)
    applied = build_schedule(config, optimizer, span)
    theirs = []
    for _ in range(120):
        theirs.append(optimizer.param_groups[0]["lr"])
        applied.step(1)
    np.testing.assert_allclose(
        schedule.rates(np.arange(120), config.optimizer.lr, span), theirs, rtol=1e-12, atol=1e-20
    )


def test_a_blend_that_can_be_checked_by_hand() -> None:
    """Four rows, two a step, a linear decay over both steps: the steps have 1 and 1/2 of the peak."""
    order_source = np.array([0, 1, 0, 1, 1, 1], np.uint8)
    order_document = np.array([0, 0, 1, 1, 2, 3], np.uint32)
    row_start = np.array([0, 2, 3, 5, 6])
    schedule = ScheduleConfig(style="linear", decay_passes=1.0, warmup_fraction=0.0)
    tokens = [np.array([10, 20]), np.array([1, 3, 5, 7])]
    rates = learning_rate_by_source(
        schedule,
        order_source,
        row_start,
        3,
        2,
        order_document=order_document,
        trained_tokens=[*tokens, np.zeros(0, int)],
    )
    assert rates[0] == SourceRate(1.0, 0.0, 1.0)
    assert rates[1].mean_over_draws == (1 + 0.5 * 3) / 4
    assert rates[1].mean_over_tokens == (1 * 1 + 0.5 * 15) / 16
    assert math.isnan(rates[2].mean_over_draws) and rates[2].to_plain()["mean_over_draws"] is None
    first_step = learning_rate_by_source(schedule, order_source, row_start, 2, 2, train_iters=1)
    assert [rate.mean_over_draws for rate in first_step] == [1.0, 1.0]


def test_a_source_that_learns_little_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [SourceRate(0.8, 0.0, 0.7), SourceRate(0.12, 0.73)]
    found = BlendRates(ScheduleConfig(), 1e-4, 10, ["web", "sft"], rates)
    said: list[str] = []
    monkeypatch.setattr(logging.Logger, "warning", lambda self, text, *values: said.append(text % values))
    assert found.warn_of_low_rates() == ["sft"]
    assert "receive less than a fifth of its peak on average: sft 0.12." in said[0]
    assert [line.split() for line in found.describe()[1:]] == [
        ["web", "0.700", "0.800", "0.0%"],
        ["sft", "-", "0.120", "73.0%"],
    ]
    assert found.to_plain()["sft"] == {"mean_over_tokens": None, "mean_over_draws": 0.12, "share_below_tenth": 0.73}


def test_a_drawn_blend_is_weighed_by_its_trained_tokens(sample_blend: Path) -> None:
    """Against the rows as training reads them, token by token."""
    from megatron_huatuo.dataset.rows import PackedRows

    blend, schedule, batch = BlendReader(sample_blend), ScheduleConfig(), 4
    found = BlendRates.of_blend(blend, schedule, batch, peak_lr=1e-3)
    rows = PackedRows(sample_blend, verify=False)
    span = schedule.span(-(-len(rows) // batch))
    sums = np.zeros((2, len(blend.source_names)))
    for number in range(len(rows)):
        row = rows.row(number)
        trained = np.bincount(row.source_of_token[row.loss_mask > 0], minlength=sums.shape[1])
        sums += trained * np.array([[1.0], [schedule.rates(np.array(number // batch), 1e-3, span) / 1e-3]])
    np.testing.assert_allclose([rate.mean_over_tokens for rate in found.rates], sums[1] / sums[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "step"}, "wrong schedule.style: got 'step', need one of cosine, linear, constant, wsd"),
        ({"decay_passes": 0.5}, "wrong schedule.decay_passes: got 0.5, need 1 or more"),
        ({"decay_passes": 1.2, "decay_iters": 5}, "got 1.2 beside decay_iters = 5, need one of the two"),
        ({"decay_passes": 1.2, "style": "wsd"}, "got 1.2 with style wsd, which does not use it"),
        ({"wsd_decay_fraction": 0.2}, "wrong schedule.wsd_decay_fraction: got 0.2 with style cosine"),
        (
            {"style": "wsd", "wsd_decay_fraction": 0.95, "warmup_fraction": 0.1},
            "got 0.95, need above 0 and at most 0.9: the decay begins after the warm-up",
        ),
        ({"min_lr": 2.0}, "wrong schedule.min_lr: got 2.0, need at most optimizer.lr = 1.0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**changes).validate(1.0)  # type: ignore[arg-type]
