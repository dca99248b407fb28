"""Replayed failures: drawn at the published rate, counted right, and done for real to a toy run."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from benchmarks.goodput import (
    CAUSES,
    Failure,
    Outcome,
    draw_failures,
    effective_share,
    lost_by_cause,
    replay,
    toy_run,
    toy_steps_after_save,
)
from benchmarks.settings import GoodputBenchmark
from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.storage.run_files import complete_checkpoints

BY_KIND = {cause.kind: cause for cause in CAUSES}


def test_causes_are_those_that_were_published() -> None:
    """466 interruptions, of which 47 were planned."""
    counts = collections.Counter({cause.name: cause.count for cause in CAUSES})
    assert sum(counts.values()) == 466 and counts["planned interruption"] == 47
    assert {cause.kind for cause in CAUSES} == {"kill", "hang", "stop"}


def test_failures_come_at_the_published_rate_and_the_same_each_time() -> None:
    failures = draw_failures(16_384, 54.0, seed=1)
    assert 420 < len(failures) < 512  # 466 and twice the root of it
    assert failures == draw_failures(16_384, 54.0, seed=1) != draw_failures(16_384, 54.0, seed=2)
    assert sum(failure.after_s for failure in failures) < 54 * 86400
    kinds = collections.Counter(failure.cause.kind for failure in failures)
    assert kinds["kill"] > 5 * kinds["hang"] and kinds["stop"] > kinds["hang"]
    assert len(draw_failures(512, 54.0, seed=4)) == 14


def test_a_failure_keeps_its_place_between_two_saves() -> None:
    """Saves every 1,000 s are 4 steps of the toy run: 2,600 s are 2 saves and 2.4 steps."""
    assert toy_steps_after_save(Failure(2600.0, CAUSES[0]), 1000.0) == 2
    assert toy_steps_after_save(Failure(999.0, CAUSES[0]), 1000.0) == 3
    assert toy_steps_after_save(Failure(1000.0, CAUSES[0]), 1000.0) == 0


def test_lost_time_by_hand() -> None:
    """Of 10 days: two failures of 1,800 s again and 300 s of waiting, one of 0 and 864: 5,064 s of 864,000."""
    outcomes = [
        Outcome(Failure(0.0, BY_KIND["kill"]), 1800.0, 300.0),
        Outcome(Failure(0.0, BY_KIND["kill"]), 1800.0, 300.0),
        Outcome(Failure(0.0, BY_KIND["stop"]), 0.0, 864.0),
    ]
    assert effective_share(outcomes, 10.0) == pytest.approx(1 - 5064 / 864_000)
    by_cause = lost_by_cause(outcomes)
    assert by_cause[BY_KIND["kill"].name] == {"failures": 2, "lost_s": 3600.0, "waiting_s": 600.0}


def test_a_toy_run_that_does_not_run_is_not_waited_for(tmp_path: Path) -> None:
    toy = toy_run(tmp_path, tmp_path / "blend")
    with pytest.raises(HuatuoError, match=r"toy run did not get to step 3 in 240 s"):
        toy.wait_until(lambda: toy.iteration() >= 3, "step 3")
    assert toy.starts() == []


@pytest.mark.slow
def test_real_kills_hangs_and_stops_leave_more_than_95_percent(sample_blend: Path, tmp_path: Path) -> None:
    """One of each kind, three quarters of an interval after a save, at the rate of 512 GPUs: 3 in 11 days."""
    settings = GoodputBenchmark()
    interval_s = settings.save_interval * settings.step_s
    failures = [Failure(2.75 * interval_s, BY_KIND[kind]) for kind in ("kill", "hang", "stop")]
    with toy_run(tmp_path, sample_blend) as toy:
        outcomes = replay(toy, failures, settings)
        starts = toy.starts()
    killed, hung, stopped = outcomes
    assert killed.lost_s == hung.lost_s == pytest.approx(0.75 * interval_s)
    assert stopped.lost_s == 0.0
    assert len(starts) == 4 and starts[1:3] == [4, 8] and starts[3] > 8
    assert complete_checkpoints(tmp_path / "run" / "checkpoints")
    assert settings.start_s < killed.waiting_s < settings.start_s + 120 < hung.waiting_s
    assert effective_share(outcomes, 11.0) >= 0.95
