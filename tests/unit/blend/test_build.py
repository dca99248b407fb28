"""The blend directory: what it holds, when it is reused, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_huatuo.blend import pack_rows, priority_order
from megatron_huatuo.blend.blend_build import build_blend, describe_changes
from megatron_huatuo.blend.blend_settings import BuildOptions, parse_blend_config
from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.storage.blend_files import ORDER_SOURCE
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.manifest import read_manifest, verify_files
from tests.unit.blend.orders import write_index

ROOT = Path(__file__).parents[3]


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """Two sources of 400 and 90 documents, some longer than a row."""
    rng = np.random.default_rng(3)
    web = write_index(tmp_path / "in" / "web", rng.integers(3, 60, 400))
    sft = write_index(tmp_path / "in" / "监督", rng.integers(3, 90, 90), seed=1)
    sources = [
        {"name": "web", "path_prefix": str(web), "level": 3},
        {"name": "监督", "path_prefix": str(sft), "priority": 1.0, "epochs": 2.5},
    ]
    return {"seq_length": 64, "seed": 7, "packing": {"window": 32}, "sources": sources}


def _build(content: dict[str, Any], output: Path, **options: Any) -> Path:
    return build_blend(parse_blend_config(content, "test"), output, BuildOptions(**options))


def _arrays(directory: Path) -> tuple[np.ndarray, ...]:
    return tuple(np.load(directory / f"{name}.npy") for name in ("order_source", "order_document", "row_start"))


def test_directory_holds_the_packed_priority_order(content: dict[str, Any], tmp_path: Path) -> None:
    directory = _build(content, tmp_path / "blend")
    source, document, row_start = _arrays(directory)
    drawn_source, drawn_document = priority_order([400, 90], [8.0, 1.0], 7, epochs=[1, 2.5])
    lengths = [IndexedReader(item["path_prefix"]).document_lengths() for item in content["sources"]]
    drawn = np.array([lengths[s][d] for s, d in zip(drawn_source, drawn_document, strict=True)])
    order, wanted_rows = pack_rows(drawn, 64, 32)
    np.testing.assert_array_equal(source, drawn_source[order])
    np.testing.assert_array_equal(document, drawn_document[order])
    np.testing.assert_array_equal(row_start, wanted_rows)
    assert (source.dtype, document.dtype, row_start.dtype) == (np.uint8, np.uint32, np.int64)


def test_manifest_counts_documents_cut_and_padded_tokens_by_source(content: dict[str, Any], tmp_path: Path) -> None:
    directory = _build(content, tmp_path / "blend")
    manifest = read_manifest(directory, "blend")
    verify_files(directory, manifest)
    source, document, row_start = _arrays(directory)
    rows = len(row_start) - 1
    assert (manifest["documents"], manifest["rows"], manifest["order_version"]) == (400 + 225, rows, 1)
    total = 0
    for number, entry in enumerate(manifest["sources"]):
        full = IndexedReader(entry["path_prefix"]).document_lengths()[document[source == number]]
        assert entry["drawn_documents"] == len(full)
        assert entry["tokens"] == np.minimum(full, 64).sum()
        assert entry["cut_documents"] == (full > 64).sum()
        assert entry["cut_tokens"] == np.maximum(full - 64, 0).sum()
        total += entry["tokens"] + entry["padded_tokens"]
    assert total == rows * 64
    assert manifest["padding_fraction"] == pytest.approx(1 - manifest["tokens"] / (rows * 64))
    assert manifest["sources"][1]["cut_documents"] > 0


def test_documents_that_a_cut_leaves_untrained_are_left_out(tmp_path: Path) -> None:
    """Context of 62 tokens keeps one trained token in a row of 64 before the eos; 63 keeps none."""
    with IndexedWriter(tmp_path / "x", 1000) as writer:
        for context in (62, 63, 100, 5):
            writer.add_documents(np.full(context + 40, 9), np.array([context, 40]), np.array([0, 1]), np.array([2]))
        writer.finish({"tokenizer": {"sha256": "t"}})
    sources = [{"name": "x", "path_prefix": str(tmp_path / "x"), "priority": 1, "epochs": 2}]
    directory = _build({"seq_length": 64, "seed": 1, "sources": sources}, tmp_path / "blend")
    entry = read_manifest(directory, "blend")["sources"][0]
    assert (entry["num_documents"], entry["usable_documents"], entry["untrained_when_cut"]) == (4, 2, 2)
    assert sorted(_arrays(directory)[1].tolist()) == [0, 0, 3, 3]


def test_same_inputs_are_found_and_reused(content: dict[str, Any], tmp_path: Path) -> None:
    first = _build(content, tmp_path / "blend")
    inode = os.stat(first / "manifest.json").st_ino
    _build(content, tmp_path / "blend")
    assert os.stat(first / "manifest.json").st_ino == inode


@pytest.fixture
def log_text(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the build says."""
    said: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(
            f"megatron_huatuo.blend.blend_build._log.{level}", lambda text, *values: said.append(text % values)
        )
    return said


@pytest.mark.slow
def test_changed_inputs_are_named_and_the_blend_is_built_again(
    content: dict[str, Any], tmp_path: Path, log_text: list[str]
) -> None:
    _build(content, tmp_path / "blend")
    before = _arrays(tmp_path / "blend")
    _build({**content, "seed": 8}, tmp_path / "blend")
    assert any("changed: seed: 7 -> 8" in text for text in log_text)
    assert not np.array_equal(before[0], _arrays(tmp_path / "blend")[0])
    write_index(tmp_path / "in" / "web", np.full(300, 9))
    _build({**content, "seed": 8}, tmp_path / "blend")
    assert any("sources.web.index.idx" in text for text in log_text)


def test_torn_blend_is_built_again_and_said(content: dict[str, Any], tmp_path: Path, log_text: list[str]) -> None:
    directory = _build(content, tmp_path / "blend")
    wanted = (directory / "order_document.npy").read_bytes()
    (directory / "order_document.npy").write_bytes(wanted[:-100] + bytes(100))
    _build(content, tmp_path / "blend")
    assert any("is built again: file differs from its manifest" in text for text in log_text)
    assert (directory / "order_document.npy").read_bytes() == wanted


def test_a_directory_of_other_things_is_never_replaced(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "blend").mkdir()
    (tmp_path / "blend" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"output directory is not a blend: .* holds other files"):
        _build(content, tmp_path / "blend")
    assert (tmp_path / "blend" / "thesis.txt").read_text() == "years of work"


def test_threads_and_blocks_of_the_build_do_not_change_a_byte(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _arrays(_build(content, tmp_path / "a", num_threads=1))
    monkeypatch.setattr("megatron_huatuo.blend.blend_write.BLOCK_DRAWS", 37)
    found = _arrays(_build(content, tmp_path / "b", num_threads=2))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    ours, theirs = (read_manifest(tmp_path / name, "blend") for name in "ab")
    assert ours["sources"] == theirs["sources"]


@pytest.mark.parametrize("block", [37, 1 << 20])
def test_without_the_kernel_the_same_bytes_are_built(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    wanted = _arrays(_build(content, tmp_path / "a"))
    for module in ("order_plan", "row_packing"):
        monkeypatch.setattr(f"megatron_huatuo.blend.{module}.load_kernel", lambda: None)
    monkeypatch.setattr("megatron_huatuo.blend.blend_write.BLOCK_DRAWS", block)
    found = _arrays(_build(content, tmp_path / "b"))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_megatron_indices_are_the_same_order_in_megatrons_dtypes(content: dict[str, Any], tmp_path: Path) -> None:
    directory = _build(content, tmp_path / "blend", megatron_indices=True)
    source, document, _ = _arrays(directory)
    dataset = np.load(directory / "megatron_dataset_index.npy")
    sample = np.load(directory / "megatron_dataset_sample_index.npy")
    assert (dataset.dtype, sample.dtype) == (np.int16, np.int64)
    np.testing.assert_array_equal(dataset, source)
    np.testing.assert_array_equal(sample, document)


def test_many_sources_build(tmp_path: Path) -> None:
    sources = [
        {"name": f"s{i}", "path_prefix": str(write_index(tmp_path / f"s{i}", np.full(3, 5 + i % 9))), "priority": 1 + i}
        for i in range(40)
    ]
    directory = _build({"seq_length": 32, "seed": 1, "sources": sources}, tmp_path / "blend")
    source, document, _ = _arrays(directory)
    assert sorted(zip(source.tolist(), document.tolist(), strict=True)) == [(s, d) for s in range(40) for d in range(3)]


def test_sources_of_different_tokenizers_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    write_index(tmp_path / "in" / "web", np.full(30, 9), tokenizer="other")
    with pytest.raises(DataError, match="sources have different tokenizers: '监督' has t, 'web' has other"):
        _build(content, tmp_path / "blend")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"source 'web': file is missing: .*web.idx"),
        ("torn", r"source 'web': .*web.(idx|bin)"),
        ("flipped", r"source 'web': .*web.idx"),
        ("no manifest", r"source 'web': file is missing: .*web.json"),
    ],
)
def test_damaged_indexes_are_refused_by_name(
    content: dict[str, Any], tmp_path: Path, damage: str, message: str
) -> None:
    index = tmp_path / "in" / "web.idx"
    if damage == "missing":
        index.unlink()
    elif damage == "torn":
        index.write_bytes(index.read_bytes()[:-7])
    elif damage == "flipped":
        data = bytearray(index.read_bytes())
        data[-5] ^= 1  # a sequence mode: context becomes trained on
        index.write_bytes(data)
    else:
        (tmp_path / "in" / "web.json").unlink()
    with pytest.raises(IntegrityError, match=message):
        _build(content, tmp_path / "blend")
    assert not (tmp_path / "blend").exists()


def test_nothing_to_draw_is_an_error(content: dict[str, Any], tmp_path: Path) -> None:
    for source in content["sources"]:
        source["epochs"] = 0
    with pytest.raises(DataError, match="no document to blend: every source has zero draws"):
        _build(content, tmp_path / "blend")
    assert not (tmp_path / "blend").exists()


def test_too_many_sources_for_megatrons_index_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_huatuo.blend import blend_write

    np.save(tmp_path / ORDER_SOURCE, np.array([40_000], dtype=np.uint16))
    with pytest.raises(ConfigError, match="too many sources for Megatron's int16 index"):
        blend_write._write_megatron_indices(tmp_path)


def test_differences_are_told_by_key() -> None:
    old = {"seed": 1, "sources": {"a": {"epochs": 1}, "b": {"epochs": 2}}}
    new = {"seed": 1, "sources": {"a": {"epochs": 3}, "c": {"epochs": 2}}}
    assert describe_changes(old, new) == [
        "sources.a.epochs: 1 -> 3",
        "sources.b: {'epochs': 2} -> nothing",
        "sources.c: nothing -> {'epochs': 2}",
    ]


def _tool(config: Path, output: Path, *options: str) -> list[str]:
    tool = [sys.executable, str(ROOT / "tools" / "build_blend.py")]
    return [*tool, "--config", str(config), "--output", str(output), *options]


@pytest.mark.slow
def test_tool_builds_and_reports_errors_in_one_line(content: dict[str, Any], tmp_path: Path) -> None:
    config, output = tmp_path / "blend 配置.yaml", tmp_path / "有 空格"
    config.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(_tool(config, output), capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (output / "manifest.json").is_file()
    content["sources"][0]["level"] = float("nan")
    config.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    failed = subprocess.run(_tool(config, output), capture_output=True, text=True, env=environment, timeout=120)
    assert failed.returncode == 1
    assert failed.stderr.strip().startswith("error: ") and "Traceback" not in failed.stderr


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A configuration whose build takes a second or two."""
    prefix = write_index(tmp_path / "large", np.random.default_rng(0).integers(4, 40, 200_000))
    sources = [{"name": "large", "path_prefix": str(prefix), "priority": 1, "epochs": 10}]
    config = tmp_path / "large.yaml"
    config.write_text(json.dumps({"seq_length": 64, "seed": 1, "sources": sources}))
    return config


@pytest.mark.slow
def test_killed_build_leaves_nothing_under_the_final_name(large: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(_tool(large, tmp_path / "blend"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".blend.*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "blend").exists()
    again = subprocess.run(_tool(large, tmp_path / "blend"), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    verify_files(tmp_path / "blend", read_manifest(tmp_path / "blend", "blend"))


@pytest.mark.slow
def test_two_builds_of_one_output_leave_one_whole_blend(large: Path, tmp_path: Path) -> None:
    both = [subprocess.Popen(_tool(large, tmp_path / "blend"), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=180)[1] for process in both]
    assert any(process.returncode == 0 for process in both), errors
    verify_files(tmp_path / "blend", read_manifest(tmp_path / "blend", "blend"))
    assert not list(tmp_path.glob(".blend.*"))
