"""Background saves: the same bytes as others, and no way for a writer to hold up or end a run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from megatron_huatuo.storage.run_files import complete_checkpoints, torn_checkpoints
from tests.distributed.engine import launch_rank, outcome, state_hashes
from tests.distributed.runner import run_ranks, started_ranks

ASYNCHRONOUS = {"asynchronous": True}


def names(run_dir: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(run_dir / "checkpoints")]


def hashes(run_dir: Path, iteration: int) -> dict[str, str]:
    [found] = run_ranks(1, state_hashes, str(run_dir / "checkpoints" / f"iter_{iteration:07d}"))
    return found


def test_a_background_save_holds_the_state_of_its_step(tmp_path: Path, configure, finish, undisturbed) -> None:
    """Training changes the weights while they are written; what is written is what they were."""
    for name, asynchronous in (("background", True), ("foreground", False)):
        finish(configure(tmp_path / name, checkpoint={"asynchronous": asynchronous}))
        assert names(tmp_path / name) == ["iter_0000009", "iter_0000006", "iter_0000003"]
    assert outcome(tmp_path / "background") == outcome(tmp_path / "foreground") == undisturbed
    assert hashes(tmp_path / "background", 3) == hashes(tmp_path / "foreground", 3)
    assert hashes(tmp_path / "background", 3) != hashes(tmp_path / "background", 6)


def _spoil_writer(config, spoil: str) -> int:
    """A run whose writer of rank 1 goes wrong in the first save."""
    from megatron_huatuo.checkpoint import share

    write = share.Share.write

    def spoilt(part: share.Share) -> share.WrittenShare:
        if os.environ["RANK"] == "1" and "0000003" in part.directory.name:
            if spoil == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if spoil == "hangs":
                time.sleep(600)
            raise OSError(28, "No space left on device")
        return write(part)

    share.Share.write = spoilt
    return launch_rank(config)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("dies", "rank 1 could not write its share: WriterError: the writer ended with signal 9"),
        ("hangs", "rank 1 could not write its share: WriterError: the writer was stopped after its limit of 6 s"),
        ("fails", "rank 1 could not write its share: WriterError: OSError: [Errno 28] No space left on device"),
    ],
)
def test_a_writer_that_goes_wrong_costs_one_checkpoint_and_nothing_else(
    spoil: str, message: str, tmp_path: Path, configure, undisturbed
) -> None:
    config = configure(tmp_path, checkpoint={**ASYNCHRONOUS, "save_timeout_minutes": 0.1})
    with started_ranks(2, _spoil_writer, config, spoil) as ranks:
        assert ranks.wait(120) == [0, 0], ranks.output()[-4000:]
        assert f"checkpoint not saved: {message}" in ranks.output(0)
    assert names(tmp_path) == ["iter_0000009", "iter_0000006"]
    assert torn_checkpoints(tmp_path / "checkpoints") == []
    assert outcome(tmp_path) == undisturbed


def _late_writer(config) -> int:
    """A run whose rank 1 writes its first save for longer than a collective may take."""
    from megatron_huatuo.checkpoint import share

    write = share.Share.write

    def late(part: share.Share) -> share.WrittenShare:
        if os.environ["RANK"] == "1" and "0000003" in part.directory.name:
            time.sleep(5)
        return write(part)

    share.Share.write = late
    return launch_rank(config)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_rank_that_writes_for_longer_than_a_collective_may_take_is_waited_for(
    asynchronous: bool, tmp_path: Path, configure
) -> None:
    config = configure(
        tmp_path,
        training={"train_iters": 4},
        checkpoint={"asynchronous": asynchronous, "save_timeout_minutes": 1.0},
        runtime={"distributed_timeout_minutes": 0.05},
    )
    with started_ranks(2, _late_writer, config) as ranks:
        assert ranks.wait(60) == [0, 0], ranks.output()[-4000:]
    assert names(tmp_path) == ["iter_0000004", "iter_0000003"]


def _slow_writer(config) -> int:
    """A run whose second save takes longer than the rest of the run would."""
    from megatron_huatuo.checkpoint import share

    write = share.Share.write

    def slow(part: share.Share) -> share.WrittenShare:
        if "0000006" in part.directory.name:
            time.sleep(30)
        return write(part)

    share.Share.write = slow
    return launch_rank(config)


def test_kill_while_a_writer_works_takes_the_writer_along(tmp_path: Path, configure, finish, undisturbed) -> None:
    config = configure(tmp_path, checkpoint=ASYNCHRONOUS)
    unfinished = tmp_path / "checkpoints" / ".iter_0000006.tmp"
    with started_ranks(2, _slow_writer, config) as ranks:
        end = time.monotonic() + 60
        while not unfinished.is_dir():
            assert ranks.running() and time.monotonic() < end, ranks.output()[-4000:]
            time.sleep(0.01)
        for rank in range(2):
            ranks.send(rank, signal.SIGKILL)
        ranks.wait(30)
    assert names(tmp_path) == ["iter_0000003"]
    assert "unfinished checkpoint passed over" in finish(config)
    assert outcome(tmp_path) == undisturbed
