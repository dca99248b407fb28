"""Near-duplicates looked for in tasks of one band each: the bytes of a search in one place, whatever is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_huatuo.corpus import ExecutorSettings, band_search, curate
from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.storage.jsonl import write_jsonl
from megatron_huatuo.text.near_duplicates import NUM_BANDS
from tests.unit.execution import slurm
from tests.unit.execution.curation import FILES
from tests.unit.text.test_text import words

TWO = ExecutorSettings(workers=2)


@pytest.fixture
def inputs(tmp_path):
    """Three files with near-duplicates within and across them."""
    for file in range(3):
        rows = []
        for number in range(12):
            text = words(number, 80)
            text[7 * file] = f"changed{number}"
            sentence = "the patients who took " + " and the ".join(text) + " were well."
            rows.append({"id": f"{file}-{number}", "source": "s", "language": "en", "text": sentence})
        write_jsonl(tmp_path / "in" / f"{file}.jsonl", rows)
    return sorted((tmp_path / "in").iterdir())


@pytest.fixture
def expected(inputs, tmp_path):
    """What a search in one place gives."""
    report = curate(inputs, tmp_path / "one")
    assert report["rejected_by_reason"] == {"near-duplicate": 24}
    return {name: (tmp_path / "one" / name).read_bytes() for name in FILES}


@pytest.fixture
def always_in_tasks(monkeypatch):
    monkeypatch.setattr(band_search, "_TEXTS_HERE", 0)


def assert_same(output: Path, expected: dict[str, bytes]) -> None:
    assert {name: (output / name).read_bytes() for name in FILES} == expected


@pytest.mark.usefixtures("always_in_tasks")
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_tasks_give_the_bytes_of_one_search(executor, inputs, expected, tmp_path, monkeypatch):
    if executor == "ray":
        pytest.importorskip("ray", reason="ray is an extra: pip install ray")
    joined = []
    original = band_search.BandSearch.group

    def group(search, number):
        joined.extend(rank for rank in range(NUM_BANDS) if search.path(rank).exists())
        return original(search, number)

    monkeypatch.setattr(band_search.BandSearch, "group", group)
    curate(inputs, tmp_path / "out", execution=ExecutorSettings(executor=executor, workers=2, memory_gib=1))
    assert joined == list(range(NUM_BANDS)), "the merge did not read what tasks found"
    assert_same(tmp_path / "out", expected)
    assert not list(tmp_path.glob(".out.work"))


@pytest.mark.slow
@pytest.mark.usefixtures("always_in_tasks")
def test_under_slurm_the_search_is_a_second_array(inputs, expected, tmp_path, monkeypatch):
    slurm.stand_in(tmp_path, monkeypatch)
    array = ExecutorSettings(executor="slurm", slurm_partition="cpu", workers=2)
    report = curate(inputs, tmp_path / "out", execution=array)  # the stand-in has done an array when it returns
    assert report["documents_in"] == 36, (tmp_path / slurm.OUTPUT).read_text()
    script = (tmp_path / slurm.SCRIPTS).read_text()
    assert "--job-name=curate" in script and "--job-name=near-duplicates" in script and "--array=0-19%2" in script
    assert_same(tmp_path / "out", expected)


@pytest.mark.slow
@pytest.mark.usefixtures("always_in_tasks")
def test_a_search_that_fails_midway_is_gone_on_with(inputs, expected, tmp_path, monkeypatch):
    """Also when the record says that a task is done, and its pairs are not there."""
    original = band_search.BandTask.run

    def run(task, data, rank=0, world_size=1):
        if rank == 3:
            raise HuatuoError("the disk went away")
        original(task, data, rank, world_size)

    monkeypatch.setattr(band_search.BandTask, "run", run)
    here = band_search.run_tasks
    monkeypatch.setattr(band_search, "run_tasks", lambda *args, **more: here(*args[:4], ExecutorSettings(), **more))
    with pytest.raises(HuatuoError, match="the disk went away"):
        curate(inputs, tmp_path / "out", execution=TWO)
    (pairs,) = (tmp_path / ".out.work").glob("*/pairs")
    assert sorted(path.name for path in pairs.glob("*.bin")) == ["00000.bin", "00001.bin", "00002.bin"]
    kept = (pairs / "00002.bin").stat().st_ino
    (pairs / "00001.bin").unlink()
    (pairs / ".00003.bin.1-00000000.tmp").write_bytes(b"torn by a kill")
    done = []

    def note(task, data, rank=0, world_size=1):
        done.append(rank)
        original(task, data, rank, world_size)
        assert (pairs / "00002.bin").stat().st_ino == kept

    monkeypatch.setattr(band_search.BandTask, "run", note)
    curate(inputs, tmp_path / "out", execution=TWO)
    assert done == [1, *range(3, 20)], "finished tasks were done again, or a lost one was not"
    assert_same(tmp_path / "out", expected)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "threshold"), [(1, 0), (2, 1_000_000)])
def test_small_searches_and_single_workers_make_no_tasks(workers, threshold, inputs, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(band_search, "_TEXTS_HERE", threshold)
    monkeypatch.setattr(band_search, "run_tasks", lambda *_, **__: pytest.fail("tasks were made"))
    curate(inputs, tmp_path / "out", execution=ExecutorSettings(workers=workers))
    assert_same(tmp_path / "out", expected)
