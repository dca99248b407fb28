"""Atomic publishing: a reader sees the old state or the new one, also when the writer is killed or the disk is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.atomic import atomic_directory, atomic_write
from megatron_huatuo.storage.lock import exclusive


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_unix_line_ends(tmp_path):
    path = tmp_path / "部 a" / "f.txt"
    with atomic_write(path, "w") as handle:
        handle.write("血压\n")
        assert not path.exists()
    assert path.read_bytes() == "血压\n".encode() and names(path.parent) == ["f.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["f"]


def test_a_directory_appears_whole_and_only_replaces_on_request(tmp_path):
    path = tmp_path / "out"
    with atomic_directory(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    with pytest.raises(DataError, match="output directory exists already"), atomic_directory(path) as folder:
        (folder / "b").write_text("2")
    assert names(path) == ["a"]
    with atomic_directory(path, replace=True) as folder:
        (folder / "b").write_text("2")
    assert names(path) == ["b"] and names(tmp_path) == ["out"]


def test_an_empty_directory_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path / "out") == ["a"]


def test_an_error_in_a_directory_leaves_the_old_one(tmp_path):
    path = tmp_path / "out"
    with atomic_directory(path) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_directory(path, replace=True) as folder:
        (folder / "b").write_text("2")
        raise KeyboardInterrupt
    assert names(path) == ["a"] and names(tmp_path) == ["out"]


def test_a_file_in_the_way_of_a_directory_is_kept(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="exists already"), atomic_directory(tmp_path / "out", replace=True):
        pass
    assert (tmp_path / "out").read_text() == "a file"


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The kernel's own full device behind the temporary name."""
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as handle:
        handle.write(b"x" * 100)
        os.dup2(os.open("/dev/full", os.O_WRONLY), handle.fileno())
    assert path.read_text() == "old" and names(tmp_path) == ["f"]


WRITER = """
import sys, time
from megatron_huatuo.storage.atomic import atomic_directory, atomic_write
from megatron_huatuo.storage.lock import exclusive
kind, path = sys.argv[1:]
with exclusive(path):
    with (atomic_write(path) if kind == "file" else atomic_directory(path, replace=True)) as target:
        target.write(b"half") if kind == "file" else (target / "half").write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_kill_9_leaves_the_old_state_and_the_next_writer_clears_up(kind, tmp_path):
    path = tmp_path / "out"
    with atomic_directory(path) if kind == "directory" else atomic_write(path) as target:
        (target / "old").write_text("old") if kind == "directory" else target.write(b"old")
    process = subprocess.Popen([sys.executable, "-c", WRITER, kind, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    with pytest.raises(DataError, match="another process is writing"), exclusive(path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (names(path) == ["old"]) if kind == "directory" else (path.read_bytes() == b"old")
    assert any(name.endswith(".tmp") for name in names(tmp_path))
    with exclusive(path):
        assert names(tmp_path) == [".out.lock", "out"]


def test_a_lock_is_free_again_after_its_block(tmp_path):
    for _ in range(2):
        with exclusive(tmp_path / "out"):
            time.sleep(0)


def test_a_lock_spares_the_temporaries_of_other_names(tmp_path):
    (tmp_path / ".other.1-a.tmp").write_text("x")
    (tmp_path / ".out.1-a.tmp").write_text("x")
    with exclusive(tmp_path / "out"):
        assert names(tmp_path) == [".other.1-a.tmp", ".out.lock"]


BUILDER = """
import sys, time
from megatron_huatuo.storage.atomic import atomic_directory
with atomic_directory(sys.argv[1], replace=True) as target:
    (target / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_next_builder_clears_what_a_killed_one_left_and_spares_living_ones(tmp_path):
    path = tmp_path / "out"
    (tmp_path / ".out.part.1-00000000.tmp").mkdir()  # of another name, out.part
    process = subprocess.Popen([sys.executable, "-c", BUILDER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    (half,) = tmp_path.glob(".out.*/half")
    for _ in range(2):  # as another process, and twice in this one
        with atomic_directory(path, replace=True) as mine, atomic_directory(path, replace=True) as other:
            assert half.exists() and mine.exists() and other.exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert half.exists()
    with atomic_directory(path, replace=True):
        assert not half.exists()
    assert names(tmp_path) == [".out.part.1-00000000.tmp", "out"]


def test_a_directory_that_exists_is_refused_before_any_work(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("1")
    begun = []
    with pytest.raises(DataError, match="output directory exists already"), atomic_directory(tmp_path / "out"):
        begun.append(True)
    assert not begun and names(tmp_path) == ["out"]


def test_errors_name_the_place_that_a_user_knows(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(DataError, match=f"^torn: {path}/a$"), atomic_directory(path) as folder:
        raise DataError(f"torn: {folder / 'a'}")
