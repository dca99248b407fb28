"""A run that was stopped and started again is the run that was never stopped, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_huatuo.storage.run_files import read_training_state, resolve_checkpoint
from tests.distributed.conftest import STEPS
from tests.distributed.engine import outcome, read_log, read_status


def received(run_dir: Path) -> dict[str, dict[str, float]]:
    """learning_rate_by_source of the newest checkpoint."""
    return read_training_state(resolve_checkpoint(run_dir))["learning_rate_by_source"]


def test_a_run_knows_the_learning_rate_that_each_source_received(tmp_path: Path, configure, finish) -> None:
    """Exact over the trained tokens of all steps, also through a resume."""
    for last in (2, STEPS):
        output = finish(configure(tmp_path, training={"train_iters": last}))
    expected: dict[str, list[float]] = {}
    for line in read_log(tmp_path):
        for name, tokens in line["trained_tokens_by_source"].items():
            sums = expected.setdefault(name, [0.0, 0.0])
            sums[0] += tokens
            sums[1] += tokens * line["learning_rate"]
    found = received(tmp_path)
    assert found.keys() == expected.keys()
    for name, (tokens, total) in expected.items():
        assert found[name]["trained_tokens"] == tokens
        assert found[name]["mean_learning_rate"] == pytest.approx(total / tokens, rel=1e-9)
    assert "mean learning rate received by source, as a share of the peak: " in output


@pytest.mark.parametrize("stopped_after", [1, 4, STEPS - 1])
def test_resume_is_bitwise(stopped_after: int, tmp_path: Path, configure, finish, undisturbed) -> None:
    for last in (stopped_after, STEPS):
        finish(configure(tmp_path, training={"train_iters": last}))
    assert outcome(tmp_path) == undisturbed


def test_resume_in_bf16_is_bitwise(tmp_path: Path, configure, finish) -> None:
    """Weights in bf16, their masters and moments in fp32."""
    for name, ends in (("whole", [STEPS]), ("resumed", [4, STEPS])):
        for last in ends:
            finish(configure(tmp_path / name, training={"train_iters": last, "precision": "bf16"}))
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "whole")


def test_a_finished_run_finds_itself_done(tmp_path: Path, configure, finish) -> None:
    finish(configure(tmp_path, training={"train_iters": 1}))
    assert "finished at step 1 of 1" in finish(configure(tmp_path, training={"train_iters": 1}))
    assert read_status(tmp_path) == {"state": "finished", "reason": "all steps done", "iteration": 1}
    assert len(read_log(tmp_path)) == 1


def test_the_last_batch_trains_what_is_left(tmp_path: Path, configure, finish) -> None:
    """96 rows in batches of 46: the third holds 4 rows, and the run ends with it."""
    finish(configure(tmp_path, training={"train_iters": None, "global_batch_size": 46, "micro_batch_size": 1}))
    log = read_log(tmp_path)
    assert [line["consumed_train_samples"] for line in log] == [46, 92, 138]
    trained = [sum(line["trained_tokens_by_source"].values()) for line in log]
    assert 0 < trained[2] < trained[0] / 4
    assert log[2]["padding_fraction"] > 0.9
