"""What is trained on, by hand and place by place for any document, under every rule."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage import targets
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.targets import (
    HUATUO_RULE,
    NATIVE_RULE,
    TEXT_RULE,
    DocumentsInRows,
    TargetRule,
    count_targets,
    label_tokens,
)
from tests.unit.dataset.hand_rows import EOS, segments_of, targets_of


def test_worked_examples_hold() -> None:
    assert doctest.testmod(targets) == (0, 5)


def naive_targets(
    tokens: list[int], modes: list[int], rule: TargetRule, length: int
) -> tuple[list[int], list[int], list[int]]:
    """The rules of docs/data_formats.md, place by place."""
    if len(tokens) > length:
        tokens, modes = tokens[:length], modes[:length]
        if rule is HUATUO_RULE:
            tokens = [*tokens[:-1], EOS]
    labels, loss_mask = [], []
    for place in range(len(tokens)):
        if place == len(tokens) - 1:
            labels.append(EOS)
            loss_mask.append(0)
        elif rule is HUATUO_RULE and modes[place] == 1 and modes[place + 1] == 0:
            labels.append(EOS)
            loss_mask.append(1)
        else:
            labels.append(tokens[place + 1])
            loss_mask.append(modes[place + 1])
    return tokens, labels, loss_mask


documents = st.lists(st.tuples(st.integers(3, 999), st.integers(0, 1)), min_size=1, max_size=14)
rules = st.sampled_from([HUATUO_RULE, NATIVE_RULE])


@given(row=st.lists(documents, min_size=1, max_size=4), rule=rules, length=st.integers(2, 16))
def test_targets_follow_the_rule_place_by_place(row, rule: TargetRule, length: int) -> None:
    columns = [tuple(list(column) for column in zip(*one, strict=True)) for one in row]
    expected = [naive_targets(tokens, modes, rule, length) for tokens, modes in columns]
    segments = segments_of([modes for _, modes in columns], rule, length)
    stored = np.array([token for tokens, _ in columns for token in tokens[:length]])
    for found, part in zip(label_tokens(stored, segments), zip(*expected, strict=True), strict=True):
        assert found.tolist() == [value for one in part for value in one]
    assert count_targets(segments).tolist() == [sum(loss_mask) for _, _, loss_mask in expected]
    if len(row) == 1:
        assert targets_of(*columns[0], rule, length) == expected[0]


def test_labels_are_int64_and_the_mask_float32() -> None:
    found = label_tokens(np.array([11, 21, EOS], np.uint16), segments_of([[0, 1, 1]]))
    assert [part.dtype for part in found] == [np.int64, np.int64, np.float32]


def test_a_cut_answer_learns_to_end_and_a_cut_question_does_not() -> None:
    assert targets_of([5, 6, 7, 8, EOS], [0, 1, 1, 1, 1], seq_length=4) == (
        [5, 6, 7, EOS],
        [6, 7, EOS, EOS],
        [1, 1, 1, 0],
    )
    assert targets_of([5, 6, 7, 8, EOS], [0, 1, 0, 0, 1], seq_length=4)[1:] == ([6, EOS, EOS, EOS], [1, 1, 0, 0])


def test_native_invents_no_target_after_an_answer() -> None:
    #         context, answer with its end token 99, context, answer with its end token
    tokens, modes = [11, 21, 99, 12, 22, 99], [0, 1, 1, 0, 1, 1]
    assert targets_of(tokens, modes, NATIVE_RULE) == (tokens, [21, 99, 12, 22, 99, EOS], [1, 1, 0, 1, 1, 0])
    assert targets_of(tokens, modes, NATIVE_RULE, 5) == (tokens[:5], [21, 99, 12, 22, EOS], [1, 1, 0, 1, 0])


def write(prefix: Path, documents: list[list[int]], modes: list[list[int]], chat_format: str) -> IndexedReader:
    """An index of documents of one segment per token."""
    lengths = [len(one) for one in documents]
    with IndexedWriter(prefix, 1000) as writer:
        flat = [token for one in documents for token in one]
        writer.add_documents(
            np.array(flat), np.ones(len(flat)), np.array([m for one in modes for m in one]), np.array(lengths)
        )
        entry = {"sha256": "a" * 64, "vocab_size": 1000, "eos_id": EOS, "path": "none"}
        writer.finish({"chat_format": chat_format, "tokenizer": entry})
    return IndexedReader(prefix)


def text_index(prefix: Path, *lengths: int) -> IndexedReader:
    texts = [[*range(100 * number, 100 * number + length - 1), EOS] for number, length in enumerate(lengths, start=1)]
    return write(prefix, texts, [[1] * length for length in lengths], "text")


def test_raw_text_is_cut_into_pieces_that_lose_no_target(tmp_path: Path) -> None:
    #                                             fits, fits exactly, one over, two rows and one over, a single token
    here = DocumentsInRows(text_index(tmp_path / "t", 3, 4, 5, 9, 1), 4)
    assert here.rule is TEXT_RULE and here.drawable() is None
    assert here.lengths().tolist() == here.full_lengths().tolist() == [3, 4, 4, 4, 4]
    assert [part.tolist() for part in here.origin_of(range(5))] == [[0, 1, 2, 3, 3], [0, 0, 0, 0, 4]]
    rows = [tuple(part.astype(int).tolist() for part in here.read(number)) for number in range(len(here))]
    assert rows == [
        ([100, 101, EOS], [101, EOS, EOS], [1, 1, 0]),
        ([200, 201, 202, EOS], [201, 202, EOS, EOS], [1, 1, 1, 0]),
        ([300, 301, 302, 303], [301, 302, 303, EOS], [1, 1, 1, 1]),
        ([400, 401, 402, 403], [401, 402, 403, 404], [1, 1, 1, 1]),
        ([404, 405, 406, 407], [405, 406, 407, EOS], [1, 1, 1, 1]),
    ]
    assert here.trained_tokens().tolist() == [2, 3, 4, 4, 4]


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), row=st.integers(1, 12))
def test_every_token_of_raw_text_but_the_first_is_a_target_once(tmp_path_factory, lengths, row: int) -> None:
    index = text_index(tmp_path_factory.mktemp("text") / "t", *lengths)
    here = DocumentsInRows(index, row)
    learnt: dict[int, list[int]] = {number: [] for number in range(len(lengths))}
    for number in range(len(here)):
        tokens, labels, loss_mask = here.read(number)
        document, offset = (int(part[0]) for part in here.origin_of([number]))
        assert tokens.tolist() == index.document(document)[0][offset : offset + row].tolist()
        learnt[document] += labels[loss_mask > 0].tolist()
    assert learnt == {number: index.document(number)[0][1:].tolist() for number in range(len(lengths))}


def test_documents_that_keep_nothing_to_train_on_are_not_drawn(tmp_path: Path) -> None:
    modes = [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 1]]  # the last one fits
    tokens = [[7] * (len(one) - 1) + [EOS] for one in modes]
    for name, drawable in (("huatuo2", [0, 3]), ("native", [0, 1, 3])):
        here = DocumentsInRows(write(tmp_path / name, tokens, modes, name), 4)
        assert here.drawable().tolist() == drawable  # type: ignore[union-attr]
        own = [(here.read(number)[1][here.read(number)[2] > 0] == 7).any() for number in range(4)]
        assert np.flatnonzero(own).tolist() == drawable[:-1], "an eos is not worth a document"
        assert here.lengths().tolist() == [4, 4, 4, 4] and here.full_lengths().tolist() == [5, 5, 5, 4]


def test_an_unknown_chat_format_is_refused(tmp_path: Path) -> None:
    index = write(tmp_path / "x", [[5, EOS]], [[0, 1]], "chatml9")
    with pytest.raises(DataError, match=r"unknown chat format: got 'chatml9', need one of huatuo2, native, text .*/x"):
        DocumentsInRows(index, 8)


def test_a_document_outside_the_index_is_no_document(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match=r"no document 2: .* has 2"):
        DocumentsInRows(text_index(tmp_path / "t", 3, 3), 8).read(2)
