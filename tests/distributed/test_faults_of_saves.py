"""Saves that are killed, checkpoints that are damaged, disks that are full: the run goes on from what is sound."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_huatuo.storage.run_files import complete_checkpoints, torn_checkpoints
from tests.distributed.engine import launch_rank, outcome, read_log, read_status
from tests.distributed.runner import started_ranks

SECOND_SAVE = ".iter_0000006.tmp"


def _kill_in_second_save(config, moment: str) -> int:
    """One rank of a run that ends by SIGKILL at one moment of its second save."""
    from megatron_huatuo.checkpoint import save, share

    rank = int(os.environ["RANK"])

    def before(function, victim: int, directory_of):
        def killing(*arguments, **options):
            if rank == victim and directory_of(*arguments).name == SECOND_SAVE:
                time.sleep(1)  # the other rank has written its shard by now
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return killing

    if moment == "before data":
        save.plan_share = before(save.plan_share, 0, lambda _, directory: directory)
    elif moment == "between shards":
        share.Share.write = before(share.Share.write, 1, lambda part: part.directory)
    elif moment == "before the marker":
        save.write_manifest = before(save.write_manifest, 0, lambda directory, *_: directory)
    else:
        save.os.rename = before(os.rename, 0, lambda directory, _: Path(directory))
    return launch_rank(config)


@pytest.mark.parametrize("moment", ["before data", "between shards", "before the marker", "before the name"])
def test_kill_during_save_leaves_previous_checkpoint_usable(
    moment: str, tmp_path: Path, configure, finish, undisturbed
) -> None:
    with started_ranks(2, _kill_in_second_save, configure(tmp_path), moment) as ranks:
        assert sorted(ranks.wait(60)) == [-signal.SIGKILL, 1], ranks.output()[-4000:]
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == ["iter_0000003"]
    assert [path.name for path in torn_checkpoints(tmp_path / "checkpoints")] == [SECOND_SAVE]
    output = finish(configure(tmp_path))
    assert f"unfinished checkpoint passed over: {tmp_path / 'checkpoints' / SECOND_SAVE}" in output
    assert f"resuming from {tmp_path / 'checkpoints' / 'iter_0000003'} after 12 rows" in output
    assert torn_checkpoints(tmp_path / "checkpoints") == []
    assert outcome(tmp_path) == undisturbed


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory, configure, finish) -> Path:
    """A run that ended after six steps, with checkpoints 3 and 6."""
    directory = tmp_path_factory.mktemp("six")
    finish(configure(directory, training={"train_iters": 6}))
    return directory


@pytest.fixture
def run_dir(six_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(six_steps, tmp_path / "run"))


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xffgarbage", b"4\n", None], ids=["empty", "garbage", "absent one", "gone"]
)
def test_latest_is_never_trusted(content: bytes | None, run_dir: Path, configure, finish, undisturbed) -> None:
    (run_dir / "checkpoints" / "latest").unlink()
    if content is not None:
        (run_dir / "checkpoints" / "latest").write_bytes(content)
    output = finish(configure(run_dir))
    assert "checkpoints/latest says" in output and "using iter_0000006" in output
    assert (run_dir / "checkpoints" / "latest").read_text() == "9\n"
    assert outcome(run_dir) == undisturbed


def refused(config) -> str:
    """What a start that must fail on both ranks prints."""
    with started_ranks(2, launch_rank, config) as ranks:
        assert ranks.wait(60) == [1, 1], ranks.output()[-4000:]
        return ranks.output(0)


def test_a_run_whose_checkpoints_are_all_gone_is_not_begun_anew(run_dir: Path, configure) -> None:
    for directory in (run_dir / "checkpoints").glob("iter_*"):
        (directory / "manifest.json").unlink()
    output = refused(configure(run_dir))
    assert "error: no complete checkpoint left in" in output and "found iter_0000003, iter_0000006" in output
    assert len(read_log(run_dir)) == 6


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("victim", ["state/__1_0.distcp", "state/.metadata", "training.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    victim: str, run_dir: Path, configure, finish, undisturbed
) -> None:
    flip(run_dir / "checkpoints" / "iter_0000006" / victim)
    output = finish(configure(run_dir))
    assert f"checkpoint file is damaged or missing: {run_dir / 'checkpoints' / 'iter_0000006' / victim}" in output
    assert "damaged checkpoint set aside as damaged_iter_0000006" in output
    assert f"resuming from {run_dir / 'checkpoints' / 'iter_0000003'}" in output
    assert outcome(run_dir) == undisturbed


def test_when_no_checkpoint_is_sound_the_start_is_refused_and_nothing_is_touched(run_dir: Path, configure) -> None:
    for name in ("iter_0000003", "iter_0000006"):
        flip(run_dir / "checkpoints" / name / "state" / "common.pt")
    assert "error: no sound checkpoint among 2 in" in refused(configure(run_dir))
    assert len(complete_checkpoints(run_dir / "checkpoints")) == 2


def _limited_on_rank_1(config) -> int:
    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    return launch_rank(config)


def test_a_save_that_fails_on_one_rank_fails_on_all_and_keeps_nothing_waiting(
    run_dir: Path, configure, finish, undisturbed
) -> None:
    """Rank 1 cannot write: routine saves are reported and training goes on; the last one is an error."""
    config = configure(run_dir, training={"train_iters": 13})
    with started_ranks(2, _limited_on_rank_1, config) as ranks:
        assert ranks.wait(120) == [1, 1]
        output = ranks.output(0)
    assert output.count("checkpoint not saved: rank 1 could not write its share: OSError: [Errno 27]") == 3
    assert len(read_log(run_dir)) == 13, "a failed routine save must not stop the run"
    assert read_status(run_dir)["state"] == "failed"
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["iter_0000003", "iter_0000006", "latest"]
    finish(configure(run_dir))
    assert outcome(run_dir) == undisturbed


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[None]:
    path.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], capture_output=True
    ).returncode:
        pytest.skip("mounting a tmpfs is not permitted here; the failing save above covers the rest")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_poisons_nothing_and_the_next_start_works(tmp_path: Path, configure, finish, undisturbed) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, megabytes=10):
        config = configure(disk / "run")
        with started_ranks(2, launch_rank, config) as ranks:
            assert ranks.wait(120) == [1, 1], ranks.output()[-4000:]
            assert "No space left on device" in ranks.output(0)
        assert [path.name for path in complete_checkpoints(disk / "run" / "checkpoints")] == ["iter_0000003"]
        assert torn_checkpoints(disk / "run" / "checkpoints") == []
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        finish(config)
        assert outcome(disk / "run") == undisturbed


def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path: Path, configure) -> None:
    (tmp_path / "file").write_text("no directory")
    with started_ranks(1, launch_rank, configure(tmp_path / "file" / "run")) as ranks:
        assert ranks.wait(60) == [1]
        assert "error: run directory cannot be written" in ranks.output()
