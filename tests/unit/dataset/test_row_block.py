"""The kernel assembles the bytes of the plain form, refuses what does not fit, and leaves the interpreter to others."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo import _C
from megatron_huatuo.blend import pack_rows
from megatron_huatuo.dataset import batch, row_block
from megatron_huatuo.dataset.batch import loss_positions
from megatron_huatuo.dataset.row import read_row
from megatron_huatuo.dataset.row_block import BlockAssembler, RowBlock, stack_rows
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.targets import DocumentsInRows
from megatron_huatuo.train.validation import HeldOut

EOS, PAD = 2, 7
FORMATS = ("huatuo2", "native", "text")
Document = list[tuple[int, int]]  # (tokens, mode) of each segment


def write_index(prefix: Path, documents: list[Document], chat_format: str, vocab_size: int) -> IndexedReader:
    """An index whose ids count up from 3, so that a token out of place shows."""
    lengths = np.array([length for one in documents for length, _ in one])
    modes = np.array([mode for one in documents for _, mode in one])
    with IndexedWriter(prefix, vocab_size) as writer:
        ids = 3 + np.arange(lengths.sum()) % (vocab_size - 3)
        writer.add_documents(ids, lengths, modes, np.array([len(one) for one in documents]))
        entry = {"sha256": "a" * 64, "vocab_size": vocab_size, "eos_id": EOS, "path": "none"}
        writer.finish({"chat_format": chat_format, "tokenizer": entry})
    return IndexedReader(prefix)


def assert_equal(found: RowBlock, wanted: RowBlock) -> None:
    for field in dataclasses.fields(RowBlock):
        ours, plain = getattr(found, field.name), getattr(wanted, field.name)
        assert (ours.dtype, ours.shape) == (plain.dtype, plain.shape), field.name
        np.testing.assert_array_equal(ours, plain, err_msg=field.name)


segments = st.tuples(st.sampled_from([1, 1, 2, 3, 8]), st.integers(0, 1))
indexes = st.tuples(
    st.lists(st.lists(segments, min_size=1, max_size=5), min_size=1, max_size=6),
    st.sampled_from(FORMATS),
    st.sampled_from([1000, 70_000]),  # uint16 and int32 ids
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(data=st.data(), sources=st.lists(indexes, min_size=1, max_size=3), seq_length=st.integers(1, 20))
def test_any_documents_of_any_format_give_the_bytes_of_the_plain_form(
    tmp_path_factory, data, sources, seq_length: int
) -> None:
    folder = tmp_path_factory.mktemp("indexes")
    opened = [DocumentsInRows(write_index(folder / f"s{place}", *one), seq_length) for place, one in enumerate(sources)]
    drawable = [(place, number) for place, one in enumerate(opened) for number in range(len(one))]
    if not drawable:
        return
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        row, room = [], seq_length
        for place, number in data.draw(st.lists(st.sampled_from(drawable), max_size=8)):
            if (length := int(opened[place].lengths([number])[0])) <= room:
                row.append((place, number))
                room -= length
        rows.append(np.array(row, np.int64).reshape(-1, 2))
    source, number = [row[:, 0] for row in rows], [row[:, 1] for row in rows]
    plain = stack_rows([read_row(opened, *one, seq_length, PAD) for one in zip(source, number, strict=True)])
    assert_equal(BlockAssembler(opened, seq_length, PAD).assemble(source, number), plain)


def test_an_index_without_modes_is_read_as_the_plain_form_reads_it(tmp_path: Path) -> None:
    index = write_index(tmp_path / "s", [[(3, 1), (9, 1)], [(2, 1)]], "text", 1000)
    index.sequence_modes = np.broadcast_to(np.int8(1), len(index.sequence_modes))
    here = [DocumentsInRows(index, 4)]
    source, number = [np.zeros(1, np.int64)] * len(here[0]), [np.array([k]) for k in range(len(here[0]))]
    plain = stack_rows([read_row(here, *one, 4, PAD) for one in zip(source, number, strict=True)])
    assert_equal(BlockAssembler(here, 4, PAD).assemble(source, number), plain)


def test_rows_of_a_blend_are_those_of_the_plain_form(sample_blend: Path) -> None:
    rows = PackedRows(sample_blend)
    numbers = [*range(len(rows)), len(rows), len(rows) + 9]
    assert_equal(rows.read(numbers), stack_rows([rows.row(number) for number in numbers]))


def test_held_out_rows_are_those_of_the_plain_form(sample_blend: Path) -> None:
    rows = PackedRows(sample_blend)
    prefix = str(sample_blend.parent / "index" / "books")
    held_out = HeldOut("books", prefix, 256, rows.tokenizer["sha256"], EOS)
    documents = DocumentsInRows(IndexedReader(prefix), 256)
    order, row_start = pack_rows(documents.lengths(), 256, 1)
    numbers = [order[first:last] for first, last in itertools.pairwise(row_start)]
    plain = [read_row([documents], np.zeros_like(part), part, 256, EOS) for part in [*numbers, order[:0]]]
    assert_equal(held_out.read(range(len(held_out) + 1)), stack_rows(plain))


def test_without_the_kernel_the_plain_form_does_its_work(sample_blend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = PackedRows(sample_blend).read([3, 1, 10**6])
    positions = loss_positions(wanted.loss_mask)
    for module in (row_block, batch):
        monkeypatch.setattr(module, "load_kernel", lambda: None)
    assert_equal(PackedRows(sample_blend).read([3, 1, 10**6]), wanted)
    assert loss_positions(wanted.loss_mask).tolist() == positions.tolist()


@settings(deadline=None)
@given(
    loss_mask=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4),
    multiple=st.integers(1, 40),
)
def test_places_of_the_loss_are_those_of_the_plain_form(loss_mask, multiple: int) -> None:
    mask = np.array(loss_mask, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_POSITIONS", multiple)
        found = loss_positions(mask)
        patch.setattr(batch, "load_kernel", lambda: None)
        plain = loss_positions(mask)
    assert (found.dtype, found.tolist()) == (np.int64, plain.tolist())


@pytest.fixture
def assembler(tmp_path: Path) -> BlockAssembler:
    return BlockAssembler(
        [DocumentsInRows(write_index(tmp_path / "s", [[(2, 0), (3, 1)]] * 4, "huatuo2", 1000), 8)], 8, PAD
    )


@pytest.mark.parametrize(
    ("source", "number", "message"),
    [
        (0, [0, 1], "row overflows: got 10 tokens, need at most 8. Build the blend again from this index"),
        (1, [0], "no source 1: the blend has 1"),
        (-1, [0], "no source -1"),
        (0, [4], "no document 4: source 0 has 4"),
        (0, [-1], "no document -1"),
    ],
)
def test_documents_that_do_not_fit_are_refused(assembler, source: int, number: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        assembler.assemble([np.full(len(number), source)], [np.array(number)])


def damaged(tmp_path: Path, **arrays: np.ndarray) -> BlockAssembler:
    index = write_index(tmp_path / "s", [[(2, 0), (3, 1)]] * 4, "huatuo2", 1000)
    for name, values in arrays.items():
        setattr(index, name, values)
    return BlockAssembler([DocumentsInRows(index, 8)], 8, PAD)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sequence_lengths": np.array([2, 2] * 4, np.int32)}, "torn index: a document of source 0 has 4 tokens"),
        ({"sequence_lengths": np.array([2, 0] * 4, np.int32)}, "sequence 1 of source 0 has no token"),
        ({"document_indices": np.array([0, 9, 4, 6, 8])}, "torn index: document 0 of source 0 has sequences 0 to 9"),
        ({"document_indices": np.array([0, 0, 4, 6, 8])}, "empty or torn document: number 0 of source 0"),
        ({"sequence_pointers": np.arange(8) * 10**6}, "empty or torn document"),
    ],
)
def test_arrays_that_contradict_each_other_are_never_read_past(tmp_path: Path, arrays, message: str) -> None:
    with pytest.raises(DataError, match=message):
        damaged(tmp_path, **arrays).assemble([np.zeros(1, int)], [np.zeros(1, int)])


def test_a_sequence_without_a_token_is_refused_by_the_plain_form_too(tmp_path: Path) -> None:
    index = write_index(tmp_path / "s", [[(2, 0), (3, 1)]], "huatuo2", 1000)
    index.sequence_lengths = np.array([5, 0], np.int32)
    with pytest.raises(DataError, match=r"document or sequence has no token: .*/s\. Index the source again"):
        DocumentsInRows(index, 8).segments([0])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tokens", np.zeros(20, np.int64), "wrong dtype of tokens"),
        ("sequence_lengths", np.zeros(8, np.int64), "wrong dtype of sequence_lengths"),
        ("sequence_pointers", np.zeros(7, np.int64), "wrong size of sequence_pointers: got 7, need 8"),
        ("sequence_modes", np.zeros(8, np.uint8), r"wrong sequence_modes: need int8 \[8\]"),
        ("document_indices", np.zeros(0, np.int64), "wrong document_indices: need at least one"),
        ("piece_start", np.zeros(4, np.int64), "wrong size of piece_start: got 4, need 5"),
        ("last_label", np.zeros(5, np.int64), r"wrong size of last_label or last_counts: need \[2, 3\]"),
    ],
)
def test_the_kernel_refuses_arrays_of_another_shape(name: str, values: np.ndarray, message: str) -> None:
    arrays = {
        "tokens": np.zeros(20, np.uint16),
        "sequence_lengths": np.zeros(8, np.int32),
        "sequence_pointers": np.zeros(8, np.int64),
        "sequence_modes": np.zeros(8, np.int8),
        "document_indices": np.zeros(5, np.int64),
        "piece_start": None,
        "last_label": np.zeros((2, 3), np.int64),
        "last_counts": np.zeros((2, 3), np.bool_),
    }
    with pytest.raises(ValueError, match=message):
        _C.RowAssembler(8, PAD).add_source(**arrays | {name: values}, cut_token=-1)  # type: ignore[arg-type]


def test_the_kernel_refuses_outputs_and_rows_that_do_not_fit() -> None:
    kernel, none = _C.RowAssembler(8, PAD), np.zeros(0, np.int64)
    good = [np.zeros((1, 8), np.int64), np.zeros((1, 8), np.int64), np.zeros((1, 8), np.float32)]
    for last, starts, message in (
        (np.zeros((2, 8), np.int64), [0, 0], r"wrong shape of source_of_token: need \[1, 8\]"),
        (np.zeros((1, 8), np.int64), [0, 1], "wrong row_start: need ascending numbers from 0 to 0"),
        (np.zeros((1, 8), np.int64), [1, 0], "wrong row_start"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel.assemble(none, none, np.array(starts), *good, last)
    with pytest.raises(ValueError, match="wrong seq_length: got 0, need 1 to"):
        _C.RowAssembler(0, PAD)
    with pytest.raises(ValueError, match="wrong multiple: got 0, need at least 1"):
        _C.loss_positions(good[2], 0)


def test_other_threads_run_while_rows_are_assembled(tmp_path: Path) -> None:
    """With a switch interval of a minute nobody else runs inside a call that keeps the interpreter."""
    index = write_index(tmp_path / "s", [[(1000, 0), (3000, 1)]], "huatuo2", 1000)
    assembler = BlockAssembler([DocumentsInRows(index, 4096)], 4096, PAD)
    rows = [np.zeros(1, np.int64)] * 3000
    span: list[float] = []
    kernel = assembler._kernel

    class Timed:
        def assemble(self, *arguments: np.ndarray) -> np.ndarray:
            span.append(time.monotonic())
            found = kernel.assemble(*arguments)
            span.append(time.monotonic())
            return found

    assembler._kernel = Timed()
    thread = threading.Thread(target=assembler.assemble, args=(rows, rows))
    moments = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        thread.start()
        while thread.is_alive():
            moments.append(time.monotonic())
            time.sleep(0.001)
    finally:
        sys.setswitchinterval(interval)
    assert any(span[0] < moment < span[1] for moment in moments)
