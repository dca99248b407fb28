"""Stalls are those of the engine's own saves: asynchronous ones are written while steps go on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import save
from benchmarks.settings import SaveBenchmark
from megatron_huatuo.checkpoint.save import SaveError
from megatron_huatuo.models.core.flops import count_parameters
from tests.distributed.runner import run_ranks

KEYS = {
    "name",
    "ours",
    "peer",
    "peer_name",
    "ratio",
    "unit",
    "slower_steps_s",
    "runs",
    "machine",
    "versions",
    "command",
}


@pytest.mark.slow
def test_both_ways_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "on_ranks", run_ranks)  # as real, and quicker to start
    [record] = save.run(SaveBenchmark(gigabytes=0.01, saves=1, directory=str(tmp_path)))
    assert set(record) == KEYS
    [ours], [peer] = record["runs"]["ours"], record["runs"]["peer"]
    assert ours["steps"] >= 1 and peer["steps"] == 0
    assert 0 < ours["stall_s"] == record["ours"] and 0 < peer["stall_s"] == record["peer"]
    assert record["ratio"] == record["ours"] / record["peer"]
    assert ours["bytes"] > 10e6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gigabytes", [1.0, 1.4, 4.0])
def test_state_is_as_large_as_asked_for(gigabytes: float) -> None:
    assert 16e-9 * count_parameters(save._architecture(gigabytes)) == pytest.approx(gigabytes, rel=0.06)


def test_a_save_that_failed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = SimpleNamespace(
        save=lambda: None, is_pending=lambda: False
    )  # reports its error and goes on, as Saver does
    monkeypatch.setattr(save, "Saver", lambda run: failing)
    monkeypatch.setattr(save.dist, "barrier", lambda: None)
    with pytest.raises(SaveError, match="checkpoint 3 was not saved"):
        save._save(SimpleNamespace(iteration=3, last_saved=2), lambda: None)
