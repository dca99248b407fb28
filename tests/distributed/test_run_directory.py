"""A run directory belongs to one run: what it refuses, and what a refusal leaves as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.train.resume import _refuse_changes
from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.engine import make_config, read_log, train_rank
from tests.distributed.runner import run_ranks


@pytest.fixture
def short_run(tmp_path: Path, sample_blend: Path, small_model: Path) -> Path:
    """A run directory after two steps."""
    run_ranks(1, train_rank, short_config(tmp_path / "run", sample_blend, small_model))
    return tmp_path / "run"


def short_config(run_dir: Path, blend: Path, model: Path, **sections: dict[str, Any]) -> TrainConfig:
    sections["model"] = {"preset": None, "hf": str(model)}
    sections["training"] = {"train_iters": 2, **sections.get("training", {})}
    return make_config(run_dir, blend, **sections)


def status(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "status.json").read_text("utf-8"))


def test_a_run_without_a_sound_checkpoint_does_not_begin_again(
    short_run: Path, sample_blend: Path, small_model: Path
) -> None:
    checkpoint = short_run / "checkpoints" / "iter_0000002"
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(AssertionError, match=r"no complete checkpoint left in .*: found iter_0000002"):
        run_ranks(1, train_rank, short_config(short_run, sample_blend, small_model))
    assert (checkpoint / "state").is_dir() and len(read_log(short_run)) == 2


def test_latest_without_any_checkpoint_is_an_error(short_run: Path, sample_blend: Path, small_model: Path) -> None:
    (short_run / "checkpoints" / "iter_0000002").rename(short_run / "elsewhere")
    with pytest.raises(AssertionError, match="none, but `latest` names one"):
        run_ranks(1, train_rank, short_config(short_run, sample_blend, small_model))


def test_a_refused_resume_names_both_fingerprints_and_changes_nothing(
    short_run: Path, sample_blend: Path, small_model: Path
) -> None:
    before = (short_run / "config.yaml").read_bytes()
    changed = short_config(short_run, sample_blend, small_model, training={"global_batch_size": 8})
    with pytest.raises(
        AssertionError,
        match=r"config changed since iter_0000002: config got fingerprint \w{64}, need \w{64} .global_batch_size: 4 -> 8",
    ):
        run_ranks(1, train_rank, changed)
    assert (short_run / "config.yaml").read_bytes() == before
    assert status(short_run)["state"] == "failed" and status(short_run)["iteration"] == 2
    changed.checkpoint.allow_changed = ["config"]
    changed.training.train_iters = 3
    run_ranks(1, train_rank, changed)
    assert [line["iteration"] for line in read_log(short_run)] == [1, 2, 3]


def test_another_architecture_is_refused_before_weights_are_loaded(
    short_run: Path, sample_blend: Path, small_model: Path
) -> None:
    with pytest.raises(AssertionError, match="ConfigError: config changed since iter_0000002"):
        run_ranks(1, train_rank, make_config(short_run, sample_blend, training={"train_iters": 2}))


def test_a_stop_file_counts_from_before_the_start(tmp_path: Path, sample_blend: Path, small_model: Path) -> None:
    (tmp_path / "STOP").touch()
    assert run_ranks(2, train_rank, short_config(tmp_path, sample_blend, small_model)) == ["stopped", "stopped"]
    assert status(tmp_path) == {"state": "stopped", "reason": "file STOP", "iteration": 1}
    assert not (tmp_path / "STOP").exists()
    assert run_ranks(2, train_rank, short_config(tmp_path, sample_blend, small_model)) == ["finished", "finished"]
    assert [line["iteration"] for line in read_log(tmp_path)] == [1, 2]


def test_two_jobs_cannot_share_a_run_directory(tmp_path: Path, sample_blend: Path, small_model: Path) -> None:
    with exclusive(tmp_path / "run"), pytest.raises(AssertionError, match="another process is writing"):
        run_ranks(2, train_rank, short_config(tmp_path / "run", sample_blend, small_model))


@pytest.mark.parametrize(("consumed", "accepted"), [(0, True), (16, True), (20, True), (24, False)])
def test_a_replanned_blend_is_accepted_up_to_the_row_it_keeps(consumed: int, accepted: bool) -> None:
    state = {"fingerprints": {"blend": "old"}, "consumed_train_samples": consumed}
    blend = {"parent_sha256": "old", "consumed_rows": 20}
    arguments = (TrainConfig(), {"blend": "new"}, state, blend, Path("iter_0000005"), {})
    if accepted:
        _refuse_changes(*arguments)
    else:
        with pytest.raises(ConfigError, match="keeps the first 20 rows, but iter_0000005 has consumed 24"):
            _refuse_changes(*arguments)


def _train_in_two_folders(config: TrainConfig, other: str, checks_at_start: bool) -> str:
    """What nodes without a shared file system do: one path, and a folder of its own behind it on each."""
    import torch.distributed as dist

    from megatron_huatuo.train import start

    start._SEE_S = 0.5
    if not checks_at_start:
        start._require_shared = lambda run_dir: None
    if dist.get_rank() == 1:
        config.run_dir = other
    return train_rank(config)


def test_a_run_directory_that_is_not_shared_is_refused_at_the_start(
    tmp_path: Path, sample_blend: Path, small_model: Path
) -> None:
    config = short_config(tmp_path / "run", sample_blend, small_model)
    with pytest.raises(
        AssertionError, match=r"run directory is not shared: rank 1 on .* \(1 ranks in all\) does not see"
    ):
        run_ranks(2, _train_in_two_folders, config, str(tmp_path / "other"), True)
    assert not list(tmp_path.glob("*/.shared*")) and not (tmp_path / "run" / "checkpoints").exists()


def test_a_share_that_rank_0_does_not_see_is_no_part_of_a_checkpoint(
    tmp_path: Path, sample_blend: Path, small_model: Path
) -> None:
    config = short_config(tmp_path / "run", sample_blend, small_model)
    with pytest.raises(AssertionError, match=r"rank 0 does not see what another rank has written: .*__1_0.distcp"):
        run_ranks(2, _train_in_two_folders, config, str(tmp_path / "other"), False)
    assert not list(tmp_path.glob("run/checkpoints/iter_*"))
