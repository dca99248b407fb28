"""Shares over the run: the published mixture figure, the limit curve, the files, and a run's own shares."""

from __future__ import annotations

import csv
import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.font_manager import fontManager

from megatron_huatuo.blend import priority_order, schedule_picture
from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.blend.schedule_counts import Schedule, Segment, expected_drawn
from megatron_huatuo.blend.schedule_picture import (
    plot_schedule,
    write_run_schedule,
    write_schedule,
)
from megatron_huatuo.errors import ConfigError, DataError
from tests.unit.blend.orders import (
    RECIPE_EPOCHS,
    RECIPE_PRIORITIES,
    RECIPE_SIZES,
    write_index,
)

PUBLISHED = {
    0.00: [0.306, 0.189, 0.217, 0.043, 0.052, 0.018, 0.122, 0.05, 0.005],
    0.21: [0.226, 0.137, 0.237, 0.048, 0.068, 0.024, 0.176, 0.077, 0.007],
    0.41: [0.108, 0.068, 0.226, 0.045, 0.092, 0.034, 0.290, 0.124, 0.013],
    0.62: [0.014, 0.007, 0.125, 0.025, 0.104, 0.037, 0.463, 0.198, 0.028],
    0.83: [0, 0, 0.012, 0.002, 0.053, 0.020, 0.588, 0.250, 0.075],
    0.93: [0, 0, 0, 0, 0.012, 0.01, 0.535, 0.232, 0.222],
    1.00: [0, 0, 0, 0, 0, 0, 0.075, 0.031, 0.894],
}
"""Share of each source (RECIPE_NAMES) by progress, read off the published figure, in bins of about 2 %."""


def test_published_mixture_figure_is_reproduced() -> None:
    """All 5.76 million draws of the nine sources: RMSE over the 63 published shares at most 0.015."""
    source, _ = priority_order(RECIPE_SIZES, RECIPE_PRIORITIES, 2024, epochs=RECIPE_EPOCHS)
    total, errors = len(source), []
    for progress, shares in PUBLISHED.items():
        start = round(min(max(progress - 0.01, 0), 0.98) * total)
        drawn = np.bincount(source[start : start + total // 50], minlength=9) / (total // 50)
        errors.append(drawn - np.array(shares))
    assert np.sqrt(np.mean(np.square(errors))) <= 0.015


def test_limit_curve_starts_at_the_weights_and_ends_with_every_document() -> None:
    sizes, priorities = np.array([1000, 0, 500]), np.array([4.0, 2.0, 1.0])
    drawn = expected_drawn(sizes, priorities, np.array([0.0, 1e-3, 700.0, 1500.0]))
    np.testing.assert_allclose(drawn[0], 0, atol=1e-6)
    np.testing.assert_allclose(drawn[1] / drawn[1].sum(), [8 / 9, 0, 1 / 9], rtol=1e-4)
    np.testing.assert_allclose(drawn.sum(axis=1), [0, 1e-3, 700, 1500], atol=1e-6)
    np.testing.assert_allclose(drawn[3], sizes, atol=1e-6)
    time = -np.log1p(-drawn[2][0] / 1000) / 4
    np.testing.assert_allclose(drawn[2][2], 500 * -np.expm1(-time), rtol=1e-9)


def test_schedule_csv_counts_the_order(tmp_path: Path) -> None:
    order = np.array([0] * 60 + [1, 0] * 20 + [1] * 100, dtype=np.uint8)
    np.save(tmp_path / "order_source.npy", order)
    segment = Segment(0, np.array([80, 120]), np.array([9.0, 1.0]))
    schedule = Schedule.of_rows(["网页 a,b", "sft"], tmp_path / "order_source.npy", [segment])
    assert write_schedule(schedule, tmp_path) == ["schedule.csv", "schedule.png"]
    with open(tmp_path / "schedule.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 100 and sum(int(row["documents:网页 a,b"]) for row in rows) == 80
    assert float(rows[0]["share:网页 a,b"]) == 1 and float(rows[-1]["share:sft"]) == 1
    assert all(abs(float(row["limit:网页 a,b"]) + float(row["limit:sft"]) - 1) < 1e-5 for row in rows)
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")


def test_chinese_names_take_a_font_that_has_them_or_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without such a font: one line in the log, and no warning for every missing character."""
    said: list[str] = []
    labels: list[str] = []
    plot = Axes.plot
    monkeypatch.setattr(schedule_picture._log, "warning", said.append)
    monkeypatch.setattr(Axes, "plot", lambda *args, **more: labels.append(more.get("label", "")) or plot(*args, **more))
    np.save(tmp_path / "order.npy", np.arange(100, dtype=np.uint8) % 3)
    segment = Segment(0, np.array([34, 33, 33]), np.ones(3))
    drawn = Schedule.of_rows(["网页", "naïve", "sft"], tmp_path / "order.npy", [segment])
    for fonts, names in (([], {"source 0", "naïve", "sft"}), (["Noto Sans CJK JP"], {"网页", "naïve", "sft"})):
        schedule_picture._chinese_font.cache_clear()
        labels.clear()
        plain = next(font for font in fontManager.ttflist if font.name == "DejaVu Sans")
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore" if fonts else "error")  # the second font only says that it has them
            patch.setattr(fontManager, "ttflist", [plain, *(dataclasses.replace(plain, name=name) for name in fonts)])
            plot_schedule(drawn, tmp_path / "a.png")
            plot_schedule(drawn, tmp_path / "b.png")
        assert set(labels) - {""} == names
    schedule_picture._chinese_font.cache_clear()
    assert len(said) == 1 and "no installed font has Chinese characters" in said[0]


def test_run_schedule_shows_what_the_log_says_was_consumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    sources = [{"name": "a", "path_prefix": str(write_index(tmp_path / "a", np.full(90, 20))), "priority": 1}]
    blend = build_blend(parse_blend_config({"seq_length": 64, "seed": 1, "sources": sources}, "test"), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"no training run: .*config.yaml cannot be read"):
        write_run_schedule(run)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"blend": str(blend)}}))
    with pytest.raises(DataError, match="run has logged no consumed rows yet"):
        write_run_schedule(run)
    lines = [json.dumps({"iteration": i, "consumed_train_samples": 4 * i}) for i in range(1, 30)]
    (run / "log.jsonl").write_text("\n".join([*lines, '{"iteration": 30, "consu']))
    assert write_run_schedule(run).read_bytes().startswith(b"\x89PNG")
