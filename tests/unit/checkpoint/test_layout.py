"""Which checkpoints count, which is newest, and which go."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_huatuo.checkpoint.layout import latest_disagrees, prune, unfinished_directory, write_latest
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.run_files import (
    complete_checkpoints,
    iteration_name,
    iteration_of,
    resolve_checkpoint,
    torn_checkpoints,
)


def make(checkpoints: Path, *iterations: int) -> list[Path]:
    """Complete checkpoints, as far as this module looks."""
    found = []
    for iteration in iterations:
        path = checkpoints / iteration_name(iteration)
        (path / "state").mkdir(parents=True)
        (path / "state" / "data").write_text("x")
        (path / "manifest.json").write_text("{}")
        found.append(path)
    return found


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_names_and_numbers() -> None:
    assert iteration_name(100) == "iter_0000100"
    assert iteration_of(Path("a/iter_0000100")) == 100
    assert iteration_of(Path(iteration_name(2**31))) == 2**31
    with pytest.raises(IntegrityError, match="no checkpoint directory: a/latest, need a name like iter_0000100"):
        iteration_of(Path("a/latest"))


def test_newest_first_by_number(tmp_path: Path) -> None:
    make(tmp_path, 9, 100, 10, 12_345_678)
    assert names(complete_checkpoints(tmp_path)) == ["iter_12345678", "iter_0000100", "iter_0000010", "iter_0000009"]
    assert complete_checkpoints(tmp_path / "nowhere") == []


def test_what_an_interrupted_save_left_is_torn_and_never_complete(tmp_path: Path) -> None:
    make(tmp_path, 5)
    [bare] = make(tmp_path, 6)
    (bare / "manifest.json").unlink()
    unfinished_directory(tmp_path, 7).mkdir()
    (tmp_path / "notes").mkdir()
    assert names(complete_checkpoints(tmp_path)) == ["iter_0000005"]
    assert names(torn_checkpoints(tmp_path)) == [".iter_0000007.tmp", "iter_0000006"]
    assert torn_checkpoints(tmp_path / "nowhere") == []


def test_a_run_its_checkpoints_and_one_iteration_resolve(tmp_path: Path) -> None:
    first, second = make(tmp_path / "checkpoints", 1, 2)
    assert resolve_checkpoint(tmp_path) == second
    assert resolve_checkpoint(tmp_path / "checkpoints") == second
    assert resolve_checkpoint(first) == first
    with pytest.raises(IntegrityError, match=r"no complete checkpoint in .*nowhere"):
        resolve_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"2\n", None),
        (b"2", None),
        (b"", "(empty)"),
        (b"9\n", "9"),
        (b"\xff\x00garbage", "\ufffd\x00garbage"),
        (None, "(missing)"),
    ],
)
def test_latest_is_compared_and_never_trusted(tmp_path: Path, content: bytes | None, said: str | None) -> None:
    _, newest = make(tmp_path, 1, 2)
    if content is not None:
        (tmp_path / "latest").write_bytes(content)
    assert latest_disagrees(tmp_path, newest) == said


def test_latest_is_written_for_people(tmp_path: Path) -> None:
    write_latest(tmp_path, 42)
    assert (tmp_path / "latest").read_text() == "42\n"


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [
        (2, None, [50, 40]),
        (1, 20, [50, 40, 20]),
        (2, 20, [50, 40, 20]),
        (9, None, [50, 40, 30, 20, 10]),
        (0, None, [50]),
    ],
)
def test_prune_keeps_the_newest_and_every_mth(
    tmp_path: Path, keep: int, keep_every: int | None, left: list[int]
) -> None:
    make(tmp_path, 10, 20, 30, 40, 50)
    gone = prune(tmp_path, keep, keep_every)
    assert [iteration_of(path) for path in complete_checkpoints(tmp_path)] == left
    assert sorted([*left, *map(iteration_of, gone)]) == [10, 20, 30, 40, 50]
    assert not any(path.exists() for path in gone)
