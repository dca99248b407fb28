"""Re-planning: the consumed part stays, nothing is drawn twice, the rest follows the new settings."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_replan import replan_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.storage.blend_files import blend_sha256
from megatron_huatuo.storage.manifest import read_manifest, verify_files
from tests.unit.blend.orders import write_index


def _content(tmp_path: Path, **epochs: float) -> dict[str, Any]:
    sizes = {"a": 900, "b": 500, "tiny": 7}
    for number, (name, size) in enumerate(sizes.items()):
        if not (tmp_path / f"{name}.idx").exists():
            lengths = np.random.default_rng(number).integers(3, 70, size)
            write_index(tmp_path / name, lengths, seed=number)
    priorities = {"a": 8.0, "b": 2.0, "tiny": 1.0}
    sources = [
        {"name": name, "path_prefix": str(tmp_path / name), "priority": priorities[name], "epochs": count}
        for name, count in (epochs or {"a": 1, "b": 2, "tiny": 40}).items()
    ]
    return {"seq_length": 64, "seed": 7, "packing": {"window": 64}, "sources": sources}


def _run(tmp_path: Path, name: str, blend: Path, rows: int) -> Path:
    """What a training run leaves: its configuration, and checkpoints of which the newest complete one counts."""
    run = tmp_path / name
    for iteration, consumed, complete in ((1, 3, True), (20, rows, True), (30, rows + 50, False)):
        checkpoint = run / "checkpoints" / f"iter_{iteration:07d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "training.json").write_text(json.dumps({"consumed_train_samples": consumed}))
        if complete:
            (checkpoint / "manifest.json").write_text("{}")
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"blend": str(blend)}}))
    return run


def _arrays(directory: Path) -> tuple[np.ndarray, ...]:
    return tuple(np.load(directory / f"{name}.npy") for name in ("order_source", "order_document", "row_start"))


def _documents(directory: Path, name: str) -> list[int]:
    """Documents of one source, in packed order."""
    names = [source["name"] for source in read_manifest(directory, "blend")["sources"]]
    source, document, _ = _arrays(directory)
    return document[source == names.index(name)].tolist() if name in names else []


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return build_blend(parse_blend_config(_content(tmp_path), "test"), tmp_path / "blend")


@pytest.mark.parametrize("rows", [0, 1, 150, 400])
def test_prefix_stays_and_every_document_still_comes_once_an_epoch(parent: Path, tmp_path: Path, rows: int) -> None:
    content = _content(tmp_path)
    content["sources"][1]["priority"] = 64.0
    run = _run(tmp_path, "run", parent, rows)
    child = replan_blend(run, parse_blend_config(content, "new"), tmp_path / "child")
    manifest = read_manifest(child, "blend")
    verify_files(child, manifest)
    assert manifest["parent_sha256"] == blend_sha256(read_manifest(parent, "blend"))
    assert manifest["consumed_rows"] == rows
    old, new = _arrays(parent), _arrays(child)
    entries = int(old[2][rows])
    assert new[2][: rows + 1].tolist() == old[2][: rows + 1].tolist()
    for before, after in zip(old[:2], new[:2], strict=True):
        assert before[:entries].tobytes() == after[:entries].tobytes()
    assert not np.array_equal(old[0], new[0])
    for name, times in (("a", 1), ("b", 2), ("tiny", 40)):
        assert set(Counter(_documents(child, name)).values()) == {times}
    tail = new[0][entries : entries + 150]
    assert (tail == 1).mean() > 0.75  # b now weighs 64 against 8 and 1


def test_parent_is_named_as_a_training_run_knows_it(parent: Path) -> None:
    """The loader's fingerprint of the blend, which checkpoints record, is what `parent_sha256` is compared with."""
    assert PackedRows(parent).fingerprint == blend_sha256(read_manifest(parent, "blend"))


def test_permutations_go_on_where_they_stood(parent: Path, tmp_path: Path) -> None:
    """Documents of one source keep their own order but for those that the window moved."""
    child = replan_blend(
        _run(tmp_path, "run", parent, 150), parse_blend_config(_content(tmp_path), "n"), tmp_path / "c"
    )
    old, new = _documents(parent, "a"), _documents(child, "a")
    where = {document: place for place, document in enumerate(old)}
    assert max(abs(where[document] - place) for place, document in enumerate(new)) < 2 * 64


def test_replanned_blends_are_replanned_again(parent: Path, tmp_path: Path) -> None:
    """New epochs and a new source in the second one, a source taken out in the third."""
    child = replan_blend(
        _run(tmp_path, "r1", parent, 100), parse_blend_config(_content(tmp_path), "n"), tmp_path / "c1"
    )
    second = _content(tmp_path, a=1.5, b=2, tiny=40)
    new = write_index(tmp_path / "new", np.full(300, 20), seed=9)
    second["sources"].append({"name": "new", "path_prefix": str(new), "priority": 500.0})
    grandchild = replan_blend(_run(tmp_path, "r2", child, 220), parse_blend_config(second, "n"), tmp_path / "c2")
    assert sorted(Counter(_documents(grandchild, "a")).values()) == [1] * 450 + [2] * 450
    for name, times in (("b", 2), ("tiny", 40), ("new", 1)):
        assert set(Counter(_documents(grandchild, name)).values()) == {times}
    third = {**second, "sources": [source for source in second["sources"] if source["name"] != "a"]}
    last = replan_blend(_run(tmp_path, "r3", grandchild, 300), parse_blend_config(third, "n"), tmp_path / "c3")
    consumed = int(_arrays(grandchild)[2][300])
    old, new_source, new_document = _arrays(grandchild), *_arrays(last)[:2]
    assert np.array_equal(old[0][:consumed], new_source[:consumed])
    assert np.array_equal(old[1][:consumed], new_document[:consumed])
    assert not (new_source[consumed:] == 0).any()
    for name, times in (("b", 2), ("tiny", 40), ("new", 1)):
        assert set(Counter(_documents(last, name)).values()) == {times}
    assert [segment["first_entry"] for segment in read_manifest(last, "blend")["segments"]] == [
        0, int(_arrays(parent)[2][100]), int(_arrays(child)[2][220]), consumed,
    ]  # fmt: skip


def test_epochs_already_exceeded_give_no_further_documents(parent: Path, tmp_path: Path) -> None:
    consumed = int(_arrays(parent)[2][400])
    given = int((_arrays(parent)[0][:consumed] == 1).sum())
    child = replan_blend(
        _run(tmp_path, "run", parent, 400),
        parse_blend_config(_content(tmp_path, a=1, b=0.1, tiny=40), "n"),
        tmp_path / "c",
    )
    assert len(_documents(child, "b")) == given


def test_same_replan_is_found_and_reused(parent: Path, tmp_path: Path) -> None:
    run, config = _run(tmp_path, "run", parent, 100), parse_blend_config(_content(tmp_path), "n")
    first = (replan_blend(run, config, tmp_path / "c") / "manifest.json").stat().st_ino
    assert (replan_blend(run, config, tmp_path / "c") / "manifest.json").stat().st_ino == first


def test_rest_does_not_repeat_the_random_numbers_of_the_consumed_part(tmp_path: Path) -> None:
    """Re-planned with nothing changed, the rest is a new draw: it agrees with the old one no better than chance."""
    prefix = write_index(tmp_path / "x", np.full(4000, 16))
    other = write_index(tmp_path / "y", np.full(4000, 16), seed=1)
    sources = [{"name": n, "path_prefix": str(p), "priority": 1} for n, p in (("x", prefix), ("y", other))]
    config = parse_blend_config({"seq_length": 64, "seed": 7, "packing": {"window": 1}, "sources": sources}, "t")
    parent = build_blend(config, tmp_path / "blend")
    child = replan_blend(_run(tmp_path, "run", parent, 1000), config, tmp_path / "c")
    old, new = _arrays(parent)[0][4000:], _arrays(child)[0][4000:]
    assert 0.45 < (old == new).mean() < 0.55


@pytest.mark.parametrize(
    ("rows", "message"),
    [(100_000, r"wrong consumed rows: got 100000, need 0 to"), (-1, r"wrong consumed rows: got -1")],
)
def test_rows_outside_the_blend_are_refused(parent: Path, tmp_path: Path, rows: int, message: str) -> None:
    run = _run(tmp_path, "run", parent, 100)
    with pytest.raises(ConfigError, match=message):
        replan_blend(run, parse_blend_config(_content(tmp_path), "n"), tmp_path / "c", consumed_rows=rows)


def test_what_cannot_be_replanned_is_refused(parent: Path, tmp_path: Path) -> None:
    run, content = _run(tmp_path, "run", parent, 100), _content(tmp_path)
    with pytest.raises(ConfigError, match="seq_length cannot change in mid-run: got 128, need 64"):
        replan_blend(run, parse_blend_config({**content, "seq_length": 128}, "n"), tmp_path / "c")
    with pytest.raises(ConfigError, match="wrong --output: got the run's own blend"):
        replan_blend(run, parse_blend_config(content, "n"), parent)
    with pytest.raises(ConfigError, match=r"no training run: .*config.yaml cannot be read"):
        replan_blend(tmp_path / "none", parse_blend_config(content, "n"), tmp_path / "c")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text(yaml.safe_dump({"data": {"blend": str(parent)}}))
    with pytest.raises(ConfigError, match=r"run has no complete checkpoint: .*--consumed-rows"):
        replan_blend(empty, parse_blend_config(content, "n"), tmp_path / "c")
    write_index(tmp_path / "b", np.full(500, 9))
    with pytest.raises(DataError, match="source 'b' changed since the run began"):
        replan_blend(run, parse_blend_config(content, "n"), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_damaged_parent_is_refused(parent: Path, tmp_path: Path) -> None:
    run, config = _run(tmp_path, "run", parent, 100), parse_blend_config(_content(tmp_path), "n")
    path = parent / "order_document.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"file differs from its manifest: .*order_document.npy"):
        replan_blend(run, config, tmp_path / "c")


@pytest.mark.parametrize("key", ["order_version", "packing_version"])
def test_parent_of_another_version_is_refused(
    parent: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"megatron_huatuo.blend.blend_replan.{key.upper()}", 9)
    run = _run(tmp_path, "run", parent, 20)
    with pytest.raises(IntegrityError, match=rf"blend has another {key}: got \d, need 9"):
        replan_blend(run, parse_blend_config(_content(tmp_path), "new"), tmp_path / "child")
