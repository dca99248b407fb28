"""A full disk, made by a limit on the size of files: one line that names the file, nothing published, the next run goes on."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_huatuo.corpus import curate
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.storage.atomic import atomic_directory, atomic_write, naming_write_errors, open_output
from megatron_huatuo.unify import unify

ROOT = Path(__file__).parents[3]
SIZES = (0, 300, 4000, 8000, 14_100, 60_000)


@contextmanager
def file_size_limit(size):
    """No file of this process may grow beyond so many bytes: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_inputs(folder):
    path = folder / "in.jsonl"
    rows = (
        {"id": str(n), "source": "w", "language": "zh", "title": f"病{n}", "text": f"第{n * 37}种情况是常见的慢性病，第{n}天反复发作，应于{n}周后复查并遵医嘱服药。"}
        for n in range(30)
    )  # fmt: skip
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (folder / "in.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("stage", ["curate", "unify"])
def test_a_stage_names_the_file_and_the_next_run_goes_on(stage, tmp_path, capsys):
    path, output = write_inputs(tmp_path), tmp_path / "out"
    run = exit_on_error(lambda: {"curate": curate, "unify": unify}[stage]([path], output) and 0)
    failed = 0
    for size in SIZES:
        with file_size_limit(size):
            code = run()
        told = capsys.readouterr().err
        if code == 0:
            break
        failed += 1
        last = told.strip().splitlines()[-1]
        assert last.startswith(f"error: cannot write {tmp_path}") and "File too large" in last and ".tmp" not in last
        assert "make room and run the same command again" in last and "Traceback" not in told
        assert not output.exists() and not list(tmp_path.rglob("*.tmp"))
    assert failed >= 4
    assert run() == 0 and (output / "manifest.json").exists()


def test_writers_name_their_file_also_at_the_end_and_below_a_private_name(tmp_path):
    with (
        file_size_limit(100),
        pytest.raises(OSError, match="File too large") as failed,
        open_output(tmp_path / "a") as handle,
    ):
        handle.write(b"x" * 101)  # in the buffer; the disk is full when it is closed
    assert failed.value.filename == str(tmp_path / "a")
    with (
        file_size_limit(100),
        pytest.raises(OSError, match="File too large") as failed,
        atomic_write(tmp_path / "b") as handle,
    ):
        handle.write(b"x" * 101)
    assert failed.value.filename == str(tmp_path / "b") and not (tmp_path / "b").exists()
    with (
        file_size_limit(100),
        pytest.raises(OSError, match="File too large") as failed,
        atomic_directory(tmp_path / "c") as directory,
        open_output(directory / "d") as handle,
    ):
        handle.write(b"x" * 101)
    assert failed.value.filename == str(tmp_path / "c" / "d") and [one.name for one in tmp_path.iterdir()] == ["a"]


def test_what_numpy_could_not_write_is_a_full_disk_too(tmp_path):
    numpy = pytest.importorskip("numpy")
    with (
        file_size_limit(100),
        pytest.raises(OSError, match=r"File too large|No space left") as failed,
        atomic_directory(tmp_path / "c") as directory,
    ):
        numpy.save(directory / "a.npy", numpy.zeros(100_000))
    assert failed.value.filename == str(tmp_path / "c")


def test_other_errors_are_not_taken_for_a_full_disk():
    with pytest.raises(ConnectionResetError) as failed, naming_write_errors("/a"):
        raise ConnectionResetError("peer")
    assert failed.value.filename is None


TOOLS = {
    "curate_corpus": ["--input", "in.jsonl", "in.jsonl.gz", "--output", "t/out", "--workers", "2"],
    "unify_corpus": ["--input", "in.jsonl", "--output", "t/out"],
    "train_tokenizer": ["--input", "in.jsonl", "--output", "t/out", "--vocab-size", "400"],
}
PAGES = {"curate_corpus": 32, "unify_corpus": 32, "train_tokenizer": 4}  # in KiB


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_on_a_full_file_system_ends_with_one_line(tool, tmp_path):
    """A real file system of few pages."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare(1) and user namespaces, to mount a small file system")
    write_inputs(tmp_path)
    command = f'mkdir t && mount -t tmpfs -o size={PAGES[tool]}k none t && exec "$PYTHON" {ROOT}/tools/{tool}.py "$@"'
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", command, "tool", *TOOLS[tool]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("error: cannot write t/") and "No space left on device" in last
