"""Rows by hand: tokens, targets, bounds and padding; and the rows of a real blend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.dataset.row import empty_row
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.manifest import sealed
from tests.unit.dataset.hand_rows import EOS, row_of

# tokens, modes (0 context, 1 trained), source
ONE_TURN = ([11, 12, 21, EOS], [0, 0, 1, 1], 3)
TWO_TURNS = ([13, 22, 14, 23, EOS], [0, 1, 0, 1, 1], 5)
LONG = ([15, 16, 24, 25, 26, 27, EOS], [0, 0, 1, 1, 1, 1, 1], 1)


def test_a_row_with_padding_by_hand() -> None:
    row = row_of([ONE_TURN, TWO_TURNS], 12)
    assert row.tokens.tolist() == [11, 12, 21, 2, 13, 22, 14, 23, 2, 2, 2, 2]
    #      targets: of 12 → 21, of 21 → eos; 13 → 22, 22 → eos (an earlier answer ends), 14 → 23, 23 → eos
    assert row.loss_mask.tolist() == [0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert row.labels[row.loss_mask > 0].tolist() == [21, 2, 22, 2, 23, 2]
    assert row.document_bounds.tolist() == [0, 4, 9, 12]
    assert row.source_of_token.tolist() == [3] * 4 + [5] * 5 + [-1] * 3


def test_an_exact_fit_has_no_padding() -> None:
    row = row_of([ONE_TURN, TWO_TURNS], 9)
    assert row.document_bounds.tolist() == [0, 4, 9]
    assert (row.source_of_token >= 0).all()


def test_one_token_too_many_is_refused() -> None:
    with pytest.raises(DataError, match="row overflows: got 9 tokens, need at most 8"):
        row_of([ONE_TURN, TWO_TURNS], 8)


def test_a_long_document_is_cut_and_ends_with_eos() -> None:
    row = row_of([LONG], 5)
    assert row.tokens.tolist() == [15, 16, 24, 25, EOS]
    assert row.loss_mask.tolist() == [0, 1, 1, 1, 0]
    assert row.labels[:4].tolist() == [16, 24, 25, EOS]
    assert row.document_bounds.tolist() == [0, 5]


def test_padding_can_have_an_id_of_its_own() -> None:
    assert row_of([ONE_TURN], 6, pad_id=9).tokens.tolist() == [11, 12, 21, 2, 9, 9]


@pytest.mark.parametrize("row", [empty_row(6, EOS), row_of([], 6)])
def test_an_empty_row_trains_on_nothing(row) -> None:
    assert row.tokens.tolist() == [EOS] * 6
    assert row.loss_mask.sum() == 0
    assert row.document_bounds.tolist() == [0, 6]
    assert (row.source_of_token == -1).all()


def test_rows_of_a_blend_hold_every_drawn_document_once(sample_blend: Path) -> None:
    rows = PackedRows(sample_blend)
    entries = [entry for row in range(len(rows)) for entry in rows.documents_of(row)]
    drawn = {source["name"]: source["drawn_documents"] for source in rows.manifest["sources"]}
    assert [sum(source == number for source, _ in entries) for number in range(3)] == list(drawn.values())
    assert {document for source, document in entries if source == 1} == set(range(drawn["books"]))


def test_a_row_is_its_documents_one_after_the_other(sample_blend: Path) -> None:
    rows = PackedRows(sample_blend)
    for number in (0, len(rows) // 2, len(rows) - 1):
        row = rows.row(number)
        for place, (source, document) in enumerate(rows.documents_of(number)):
            start, end = row.document_bounds[place : place + 2]
            tokens, modes = IndexedReader(rows.manifest["sources"][source]["path_prefix"]).document(document)
            assert row.tokens[start:end].tolist() == tokens.tolist()
            assert row.loss_mask[start : end - 1].sum() >= modes[1:].sum()
            assert set(row.source_of_token[start:end].tolist()) == {source}


def test_tokens_in_counts_what_is_no_padding(sample_blend: Path) -> None:
    rows = PackedRows(sample_blend)
    filled = [int((rows.row(number).source_of_token >= 0).sum()) for number in range(len(rows))]
    assert rows.tokens_in(2, 5) == sum(filled[2:5])
    assert rows.tokens_in(len(rows) - 1, len(rows) + 9) == filled[-1]


def test_beyond_the_last_row_come_empty_ones(sample_blend: Path) -> None:
    rows = PackedRows(sample_blend)
    assert rows.row(len(rows)).loss_mask.sum() == 0
    assert rows.row(len(rows) + 1000).tokens.tolist() == [rows.eos_id] * rows.seq_length


# A blend of its own, whose files the tests below damage.


def write_index(prefix: Path, documents: int = 8, *, tokenizer: str = "a" * 64, first: int = 10) -> Path:
    """An index of documents of 4 tokens: [first, first, 21, eos]."""
    with IndexedWriter(prefix, 100) as writer:
        for _ in range(documents):
            tokens = np.array([first, first, 21, EOS], np.int32)
            lengths, modes = np.array([2, 2], np.int64), np.array([0, 1], np.int8)
            writer.add_documents(tokens, lengths, modes, np.array([2], np.int64))
        writer.finish({"tokenizer": {"sha256": tokenizer, "vocab_size": 100, "eos_id": EOS, "path": "none"}})
    return prefix


@pytest.fixture
def own_blend(tmp_path: Path) -> Path:
    prefix = write_index(tmp_path / "index" / "one")
    sources = [{"name": "one", "path_prefix": str(prefix), "priority": 1}]
    content = {"seq_length": 8, "seed": 1, "packing": {"window": 1}, "sources": sources}
    return build_blend(parse_blend_config(content, "test"), tmp_path / "blend")


def test_a_small_blend_opens(own_blend: Path) -> None:
    assert len(PackedRows(own_blend)) == 4


@pytest.mark.parametrize("name", ["order_source.npy", "order_document.npy", "row_start.npy"])
@pytest.mark.parametrize("damage", ["bit flipped", "cut off", "missing"])
def test_a_damaged_plan_is_refused_by_name(own_blend: Path, name: str, damage: str) -> None:
    path = own_blend / name
    content = bytearray(path.read_bytes())
    if damage == "bit flipped":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "cut off":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(IntegrityError, match=name):
        PackedRows(own_blend)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_bit_flip_in_an_index_is_refused_by_name(own_blend: Path, suffix: str) -> None:
    path = own_blend.parent / "index" / f"one{suffix}"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=f"one{suffix}"):
        PackedRows(own_blend)


@pytest.mark.parametrize(("documents", "first"), [(8, 30), (9, 10), (7, 10)])
def test_an_index_that_was_built_again_with_other_content_is_refused(own_blend, documents: int, first: int) -> None:
    write_index(own_blend.parent / "index" / "one", documents, first=first)
    with pytest.raises(IntegrityError, match=r"source one changed since the blend was built: .*index/one.* Build"):
        PackedRows(own_blend)


def test_an_index_that_was_built_again_with_the_same_content_is_accepted(own_blend: Path) -> None:
    write_index(own_blend.parent / "index" / "one")
    assert len(PackedRows(own_blend)) == 4


def test_indexes_of_two_tokenizers_are_refused(own_blend: Path) -> None:
    write_index(own_blend.parent / "index" / "two", tokenizer="b" * 64)
    manifest = json.loads((own_blend / "manifest.json").read_text())
    other = manifest["sources"][0] | {"name": "two", "path_prefix": str(own_blend.parent / "index" / "two")}
    other["index"] = other["index"] | {"tokenizer": "b" * 64}
    manifest["sources"].append(other)
    (own_blend / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(
        DataError, match="sources have different tokenizers: two has bbbbbbbbbbbb, one has aaaaaaaaaaaa"
    ):
        PackedRows(own_blend)


def test_no_blend_is_refused(tmp_path: Path, own_blend: Path) -> None:
    with pytest.raises(IntegrityError, match="file is missing"):
        PackedRows(tmp_path / "nowhere")
    shutil.copy(own_blend.parent / "index" / "one.json", tmp_path / "manifest.json")
    with pytest.raises(IntegrityError, match="wrong kind of directory: got 'index', need 'blend'"):
        PackedRows(tmp_path)
