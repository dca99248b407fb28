"""What a blend leaves out is said: sources without a document, copies of one source, documents that rows cannot hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.config import dump_yaml
from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from tests.tool_process import run_tool
from tests.unit.blend.orders import write_index

ROOT = Path(__file__).parents[3]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings of the build."""
    lines: list[str] = []
    for module in ("blend_write", "blend_sources"):
        monkeypatch.setattr(
            f"megatron_huatuo.blend.{module}._log.warning", lambda text, *values: lines.append(text % values)
        )
    return lines


def _source(path: Path, documents: int = 56, length: int = 20, **settings: Any) -> dict[str, Any]:
    prefix = write_index(path, np.full(documents, length), seed=sum(path.name.encode()))
    return {"name": path.name, "path_prefix": str(prefix), "priority": 1, **settings}


def _untrainable(path: Path, contexts: tuple[int, ...]) -> dict[str, Any]:
    """Documents of 10 trained tokens behind so many others."""
    with IndexedWriter(path, 1000) as writer:
        for context in contexts:
            writer.add_documents(np.full(context + 10, 9), np.array([context, 10]), np.array([0, 1]), np.array([2]))
        writer.finish({"tokenizer": {"sha256": "t"}})
    return {"name": path.name, "path_prefix": str(path), "priority": 1}


def _build(tmp_path: Path, *sources: dict[str, Any]) -> BlendReader:
    config = parse_blend_config({"seq_length": 64, "seed": 1, "sources": list(sources)}, "test")
    return BlendReader(build_blend(config, tmp_path / "blend"))


@pytest.mark.parametrize(
    ("epochs", "reason"),
    [
        (0.001, "its epochs, 0.001 of 56 documents, round to none. Use 0.018 or more, or leave the source out."),
        (0, "its epochs are 0. Leave the source out, or raise them."),
    ],
)
def test_a_source_without_draws_is_said(tmp_path: Path, said: list[str], epochs: float, reason: str) -> None:
    blend = _build(tmp_path, _source(tmp_path / "a", epochs=epochs), _source(tmp_path / "b"))
    assert said == [f"source 'a' gives no document: {reason}"]
    assert [source["drawn_documents"] for source in blend.manifest["sources"]] == [0, 56]


def test_the_epochs_that_the_warning_names_give_a_document(tmp_path: Path, said: list[str]) -> None:
    blend = _build(tmp_path, _source(tmp_path / "a", epochs=0.018), _source(tmp_path / "b"))
    assert said == [] and blend.manifest["sources"][0]["drawn_documents"] == 1


def test_a_source_whose_documents_no_row_can_train_on_is_said(tmp_path: Path, said: list[str]) -> None:
    _build(tmp_path, _untrainable(tmp_path / "long", (63, 90)), _source(tmp_path / "b"))
    assert said == [
        "source 'long' gives no document: each of its 2 documents is longer than a row of 64 tokens, and is trained on only "
        "beyond its end. Use longer rows, or leave the source out."
    ]


def test_documents_that_no_row_can_train_on_are_said(tmp_path: Path, said: list[str]) -> None:
    _build(tmp_path, _untrainable(tmp_path / "long", (63, 5, 90)))
    assert said == [
        "source 'long': 2 of its 3 documents are left out, as a row of 64 tokens ends before their first trained one"
    ]


def test_a_source_that_loses_much_to_the_cut_is_said(tmp_path: Path, said: list[str]) -> None:
    _build(tmp_path, _source(tmp_path / "long", documents=10, length=80), _source(tmp_path / "b", length=66))
    assert said == ["source 'long' loses 20 % of its tokens: 10 documents are cut to rows of 64"]  # b loses 3 %


def test_alone_it_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"every source has zero draws\. Source 'a': its epochs, 1e-05 of 56 documents, round"
    ):
        _build(tmp_path, _source(tmp_path / "a", epochs=1e-5))
    assert not (tmp_path / "blend").exists()


@pytest.mark.parametrize("how", ["link", "copy"])
def test_two_sources_of_one_content_are_said(tmp_path: Path, said: list[str], how: str) -> None:
    first = _source(tmp_path / "a")
    for suffix in ("bin", "idx", "json"):
        if how == "link":
            os.symlink(tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    second = _source(tmp_path / "c") if how == "copy" else {**first, "name": "b", "path_prefix": str(tmp_path / "b")}
    if how == "copy":  # the same seed gives the same bytes
        second["path_prefix"] = str(write_index(tmp_path / "c", np.full(56, 20), seed=97))
    if how == "link":  # the manifest names the files that it lies beside
        text = (tmp_path / "a.json").read_text().replace('"a.', '"b.')
        (tmp_path / "b.json").unlink()
        (tmp_path / "b.json").write_text(text)
        _unseal(tmp_path / "b.json")
    blend = _build(tmp_path, first, second)
    assert len(blend.order_source) == 112
    assert len(said) == 1 and f"sources 'a' and '{second['name']}' have the same content" in said[0]


def _unseal(path: Path) -> None:
    manifest = json.loads(path.read_text())
    del manifest["manifest_sha256"]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_a_prefix_with_the_suffix_of_one_file_is_told_so(tmp_path: Path, suffix: str) -> None:
    source = _source(tmp_path / "a")
    source["path_prefix"] += suffix
    with pytest.raises(
        IntegrityError, match=rf"source 'a': file is missing: .* Or leave '\{suffix}' out of path_prefix"
    ):
        _build(tmp_path, source)


@pytest.mark.slow
def test_the_tool_says_it_and_goes_on(tmp_path: Path) -> None:
    sources = [_source(tmp_path / "a", epochs=0.001), _source(tmp_path / "b")]
    (tmp_path / "blend.yaml").write_text(dump_yaml({"seq_length": 64, "seed": 1, "sources": sources}))
    done = run_tool("build_blend", "--config", tmp_path / "blend.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0
    assert "WARNING source 'a' gives no document: its epochs, 0.001 of 56 documents, round to none" in done.stderr
