"""What a run says while it trains: its log, who is late, traces of chosen steps, what is fused."""

from __future__ import annotations

import gzip
import json
import re
import time
from pathlib import Path

import pytest

from tests.distributed.engine import launch_rank, read_log, read_status, wait_for_step
from tests.distributed.runner import started_ranks


def _late_on_rank_1(config) -> int:
    import torch

    from megatron_huatuo.train import step

    forward_step = step.forward_step

    def late(*arguments, **options):
        if torch.distributed.get_rank() == 1:
            time.sleep(0.15)
        return forward_step(*arguments, **options)

    step.forward_step = late
    return launch_rank(config)


def test_a_late_rank_is_named(tmp_path: Path, configure) -> None:
    config = configure(tmp_path, training={"train_iters": 12}, checkpoint={"save_interval": None})
    with started_ranks(2, _late_on_rank_1, config) as ranks:
        assert ranks.wait(120) == [0, 0], ranks.output()[-4000:]
        assert ranks.output(0).count("rank 1 keeps the others waiting") == 1
    last = read_log(tmp_path)[-1]["straggler"]
    assert last["rank"] == 1 and last["seconds"] > last["fastest_s"] + 0.2
    assert "straggler" not in read_log(tmp_path)[0]


def _with_a_full_rank_1_and_slow_saves(config) -> int:
    import torch

    from megatron_huatuo.train import saving, step
    from megatron_huatuo.train.observers import reporter

    step.memory_gib = lambda device: 7.0 if torch.distributed.get_rank() == 1 else 2.0
    reporter._NOTE_EVERY_S = 0.0
    save = saving.Saver.save

    def slow(saver) -> None:
        time.sleep(0.5)
        save(saver)

    saving.Saver.save = slow
    return launch_rank(config)


def test_an_entry_knows_the_fullest_rank_the_time_and_what_saves_will_take(tmp_path: Path, configure) -> None:
    config = configure(tmp_path, training={"train_iters": 6}, checkpoint={"save_interval": 1, "keep": 1})
    with started_ranks(2, _with_a_full_rank_1_and_slow_saves, config) as ranks:
        wait_for_step(ranks, tmp_path, 3)
        assert read_status(tmp_path)["state"] == "running" and read_status(tmp_path)["iteration"] >= 2
        assert ranks.wait(120) == [0, 0], ranks.output()[-4000:]
    log = read_log(tmp_path)
    assert {line["memory_gib"] for line in log} == {7.0} and {line["fullest_rank"] for line in log} == {1}
    assert [line["time"] for line in log] == sorted(line["time"] for line in log)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", log[0]["time"])
    late = log[4]  # one step and its save are left; 4 of 5 steps were followed by a save of half a second
    assert late["eta_s"] - late["step_time_s"] >= 0.5 * 4 / 5
    [start] = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert start["iteration"] == 0 and sum(start["hosts"].values()) == 2
    assert {"torch", "megatron-core", "megatron_huatuo", "Python"} <= start["versions"].keys()
    assert start["isolation"]["backend"] == "torch" and start["isolation"]["leak"] == 0.0
    assert start["isolation"]["seconds"] < 5


def test_a_trace_of_chosen_steps_is_written_by_every_rank(tmp_path: Path, configure, finish) -> None:
    finish(configure(tmp_path, logging={"profile_steps": [2, 3], "tensorboard": True}, training={"train_iters": 4}))
    for rank in range(2):
        with gzip.open(tmp_path / "profile" / f"steps_2_3_rank{rank}.json.gz", "rt") as trace:
            names = {event.get("name") for event in json.load(trace)["traceEvents"]}
        assert "aten::mm" in names
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


def test_an_entry_of_several_steps_holds_their_means(tmp_path: Path, configure, finish) -> None:
    finish(configure(tmp_path / "each", training={"train_iters": 5}))
    output = finish(configure(tmp_path / "some", training={"train_iters": 5}, logging={"log_interval": 3}))
    each, some = read_log(tmp_path / "each"), read_log(tmp_path / "some")
    assert [line["iteration"] for line in some] == [3, 5]
    for entry, steps in zip(some, (each[:3], each[3:]), strict=True):
        tokens = [sum(step["trained_tokens_by_source"].values()) for step in steps]
        losses = [step["lm_loss"] * count for step, count in zip(steps, tokens, strict=True)]
        assert entry["lm_loss"] == pytest.approx(sum(losses) / sum(tokens), rel=1e-12)
        assert entry["padding_fraction"] == pytest.approx(sum(step["padding_fraction"] for step in steps) / len(steps))
        assert entry["grad_norm"] == steps[-1]["grad_norm"]
    seconds = some[0]["seconds"]
    assert set(seconds) == {"data_wait", "forward_backward", "gradient_reduction", "agreement", "optimizer", "other"}
    assert sum(seconds.values()) == pytest.approx(some[0]["step_time_s"]) and min(seconds.values()) >= 0
    assert [list(line["pauses_s"]) for line in each] == [[], [], [], ["save"], []], "step 3 is saved after its entry"
    assert "fused cross-entropy: off, the run is on the CPU" in output
    assert "fused Adam: off, the run is on the CPU; torch's AdamW runs" in output


def test_validation_loss_of_each_held_out_source_comes_at_intervals(
    tmp_path: Path, sample_blend: Path, configure, finish
) -> None:
    held_out = [held_out_source(sample_blend, name) for name in ("web", "sft")]
    settings = {"data": {"validation": held_out}, "training": {"train_iters": 4}, "logging": {"validation_interval": 2}}
    finish(configure(tmp_path / "two", **settings))
    log = read_log(tmp_path / "two")
    assert ["validation_loss" in line for line in log] == [False, True, False, True]
    assert set(log[1]["validation_loss"]) == {"web", "sft"}
    assert log[3]["validation_loss"]["web"] < log[1]["validation_loss"]["web"] < 8
    finish(configure(tmp_path / "without", training={"train_iters": 4}))
    assert [line["lm_loss"] for line in read_log(tmp_path / "without")] == [line["lm_loss"] for line in log]


def held_out_source(sample_blend: Path, name: str):
    from megatron_huatuo.train.train_config import ValidationSource

    return ValidationSource(name, str(sample_blend.parent / "index" / name))
