"""MMIDIDX with sequence modes: stock Megatron and we read each other's files, and no broken file opens."""

import itertools
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.storage.indexed import HEADER, IndexedReader, token_dtype
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.manifest import sealed

# Two conversations: [question+tag, answer+eos] and two turns.
TOKENS = [10, 11, 12, 20, 2, 10, 11, 30, 31, 13, 11, 32, 2]
LENGTHS = [3, 2, 2, 2, 2, 2]
MODES = [0, 1, 0, 1, 0, 1]
COUNTS = [2, 4]

# A document: its sequences, each a mode and ids.
documents = st.lists(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, 99), min_size=1, max_size=5)), min_size=1, max_size=5
    ),
    min_size=1,
    max_size=8,
)


def write(prefix, vocab_size=100, tokens=TOKENS, lengths=LENGTHS, modes=MODES, counts=COUNTS, content=None, **arrays):
    with IndexedWriter(prefix, vocab_size) as writer:
        writer.add_documents(np.array(tokens), np.array(lengths), np.array(modes), np.array(counts), **arrays)
        return writer.finish(content)


def flatten(docs):
    sequences = [sequence for document in docs for sequence in document]
    return {
        "tokens": [token for _, ids in sequences for token in ids],
        "lengths": [len(ids) for _, ids in sequences],
        "modes": [mode for mode, _ in sequences],
        "counts": [len(document) for document in docs],
    }


@pytest.fixture
def prefix(tmp_path):
    prefix = str(tmp_path / "p")
    write(prefix)
    return prefix


def test_files_are_the_documented_bytes(tmp_path):
    write(tmp_path / "p")
    assert (tmp_path / "p.bin").read_bytes() == np.array(TOKENS, dtype="<u2").tobytes()
    assert (tmp_path / "p.idx").read_bytes() == b"".join(
        [
            b"MMIDIDX\x00\x00",
            struct.pack("<Q", 1),
            struct.pack("<B", 8),
            struct.pack("<QQ", 6, 3),
            struct.pack("<6i", *LENGTHS),
            struct.pack("<6q", 0, 6, 10, 14, 18, 22),
            struct.pack("<3q", 0, 2, 6),
            struct.pack("<6b", *MODES),
        ]
    )


def test_reader_gives_back_what_was_written(prefix):
    reader = IndexedReader(prefix)
    assert len(reader) == 2 and reader.dtype == np.uint16
    assert reader.document_lengths().tolist() == [5, 8]
    assert reader.context_lengths().tolist() == [3, 2]
    tokens, modes = reader.document(1)
    assert tokens.tolist() == [10, 11, 30, 31, 13, 11, 32, 2]
    assert modes.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    ids, mode = reader.sequence(5)
    assert ids.tolist() == [32, 2] and mode == 1
    assert reader.manifest["documents"] == 2 and reader.manifest["tokens"] == 13
    # document 0: 2 targets; document 1: 2 + the eos of its first answer + 2
    assert reader.manifest["trained_tokens"] == 7


@pytest.mark.parametrize("number", [-1, 2])
def test_documents_outside_the_index_are_refused(prefix, number):
    with pytest.raises(IndexError, match="no document"):
        IndexedReader(prefix).document(number)


def test_reader_survives_pickling(prefix):
    import pickle

    assert pickle.loads(pickle.dumps(IndexedReader(prefix))).document(0)[0].tolist() == TOKENS[:5]


@pytest.mark.parametrize("vocab_size", [100, 125696])
def test_stock_megatron_reads_our_index(tmp_path, vocab_size):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    prefix = str(tmp_path / "p")
    write(prefix, vocab_size)
    stock = IndexedDataset(prefix, multimodal=True)
    assert stock.index.dtype == token_dtype(vocab_size).type
    assert stock.document_indices.tolist() == [0, 2, 6]
    assert stock.index.sequence_modes.tolist() == MODES
    assert [stock[i][0].tolist() for i in range(6)] == [[10, 11, 12], [20, 2], [10, 11], [30, 31], [13, 11], [32, 2]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_our_files_equal_stock_megatrons_byte_for_byte(tmp_path, dtype):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "stock.bin"), dtype=dtype, multimodal=True)
    for first, last, sequences in ((0, 5, slice(0, 2)), (5, 13, slice(2, 6))):
        builder.add_document(torch.tensor(TOKENS[first:last]), LENGTHS[sequences], MODES[sequences])
    builder.finalize(str(tmp_path / "stock.idx"))
    write(tmp_path / "ours", 100 if dtype == np.uint16 else 125696)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"stock.{suffix}").read_bytes()
    reader = IndexedReader(tmp_path / "stock")
    assert reader.manifest is None and reader.document(0)[0].tolist() == TOKENS[:5]
    with pytest.raises(IntegrityError, match=r"has no manifest: .*stock\.json"):
        reader.verify()


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(docs=documents, cuts=st.lists(st.integers(0, 8), max_size=3))
def test_any_documents_come_back_and_shards_in_order_give_the_same_bytes(docs, cuts):
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        whole = Path(directory) / "whole"
        write(whole, **flatten(docs))
        reader = IndexedReader(whole)
        for number, document in enumerate(docs):
            tokens, modes = reader.document(number)
            assert tokens.tolist() == [token for _, ids in document for token in ids]
            assert modes.tolist() == [mode for mode, ids in document for _ in ids]
        assert reader.document_lengths().tolist() == [sum(len(ids) for _, ids in document) for document in docs]
        contexts = []
        for document in docs:
            flat = [mode for mode, ids in document for _ in ids]
            contexts.append(flat.index(1) if 1 in flat else len(flat))
        assert reader.context_lengths().tolist() == contexts

        bounds = sorted({0, len(docs), *(cut for cut in cuts if cut < len(docs))})
        with IndexedWriter(Path(directory) / "merged", 100) as writer:
            for number, (start, end) in enumerate(itertools.pairwise(bounds)):
                write(Path(directory) / f"shard{number}", **flatten(docs[start:end]))
                writer.add_index(IndexedReader(Path(directory) / f"shard{number}"))
            merged = writer.finish()
        assert (Path(directory) / "merged.bin").read_bytes() == whole.with_suffix(".bin").read_bytes()
        assert (Path(directory) / "merged.idx").read_bytes() == whole.with_suffix(".idx").read_bytes()
        assert merged["trained_tokens"] == reader.manifest["trained_tokens"]


def test_origins_lead_back_to_file_and_line(tmp_path):
    write(
        tmp_path / "p",
        origins=np.array([[1, 7], [0, 3]]),
        content={"inputs": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]},
    )
    reader = IndexedReader(tmp_path / "p")
    assert reader.origin(0) == ("b.jsonl", 7) and reader.origin(1) == ("a.jsonl", 3)
    reader.verify()
    write(tmp_path / "q")
    assert IndexedReader(tmp_path / "q").origin(0) is None


@pytest.mark.parametrize("inputs", [["a.jsonl"], [], None])
def test_inputs_of_an_older_manifest_are_refused_by_name(tmp_path, inputs):
    content = {} if inputs is None else {"inputs": inputs}
    write(tmp_path / "p", origins=np.array([[0, 7], [0, 3]]), content=content)
    with pytest.raises(
        IntegrityError, match=r"inputs are described otherwise: .*p\.json was written by version .*again"
    ):
        IndexedReader(tmp_path / "p").origin(0)


def test_positions_beyond_two_to_the_31_stay_exact(tmp_path):
    """A sparse file of 2^31 + 5 tokens, whose last document lies past what 32 bits can count."""
    lengths = np.array([2**31 - 1, 3, 3], dtype="<i4")
    pointers = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))[:-1]]) * 2
    with open(tmp_path / "p.bin", "wb") as handle:
        handle.truncate((2**31 - 1) * 2)
        handle.seek(0, os.SEEK_END)
        handle.write(np.array([5, 6, 7, 8, 9, 2], dtype="<u2").tobytes())
    (tmp_path / "p.idx").write_bytes(
        HEADER.pack(b"MMIDIDX\x00\x00", 1, 8, 3, 3)
        + lengths.tobytes()
        + pointers.astype("<i8").tobytes()
        + np.array([0, 1, 3], dtype="<i8").tobytes()
        + np.array([0, 0, 1], dtype="i1").tobytes()
    )
    reader = IndexedReader(tmp_path / "p")
    assert reader.document_lengths().tolist() == [2**31 - 1, 6]
    assert reader.document(1)[0].tolist() == [5, 6, 7, 8, 9, 2]
    assert reader.context_lengths().tolist() == [2**31 - 1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": TOKENS[:-1]}, "wrong shape of documents: 12 tokens"),
        ({"counts": [2, 3]}, "wrong shape of documents"),
        ({"modes": [0, 1, 0, 1, 0]}, "wrong shape of documents"),
        ({"lengths": [5, 0, 2, 2, 2, 2]}, "every sequence a token"),
        ({"counts": [6, 0]}, "every document needs a sequence"),
        ({"modes": [0, 1, 0, 2, 0, 1]}, "wrong sequence mode"),
        ({"tokens": [100, *TOKENS[1:]]}, r"token id out of range: got 100, need 0 … 99"),
        ({"tokens": [-1, *TOKENS[1:]]}, r"token id out of range: got -1"),
        ({"tokens": [float(token) for token in TOKENS]}, "wrong dtype of tokens: got float64"),
        ({"origins": np.zeros((1, 2))}, "wrong shape of origins"),
    ],
)
def test_documents_that_do_not_fit_are_refused_and_leave_nothing(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "p", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_sequence_over_the_formats_limit_is_refused(tmp_path):
    huge = np.broadcast_to(np.uint16(7), 2**31)  # no memory: one element, seen 2^31 times
    with IndexedWriter(tmp_path / "p", 100) as writer, pytest.raises(DataError, match="sequence is too long"):
        writer.add_documents(huge, np.array([2**31]), np.array([1]), np.array([1]))


def test_an_empty_index_is_refused(tmp_path):
    with (
        pytest.raises(DataError, match=r"no document to write: .*p\.bin"),
        IndexedWriter(tmp_path / "p", 100) as writer,
    ):
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def set_bytes(path, offset, data):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(bytes(content))


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


LENGTHS_AT = HEADER.size
POINTERS_AT = LENGTHS_AT + 4 * 6
INDICES_AT = POINTERS_AT + 8 * 6
MODES_AT = INDICES_AT + 8 * 3

FAULTS = {
    "bin missing": (lambda b, i: b.unlink(), r"file is missing: .*p\.bin"),
    "idx missing": (lambda b, i: i.unlink(), r"file is missing: .*p\.idx"),
    "bin empty": (lambda b, i: b.write_bytes(b""), r"file is empty: .*p\.bin"),
    "idx empty": (lambda b, i: i.write_bytes(b""), r"file is empty: .*p\.idx"),
    "bin truncated": (lambda b, i: b.write_bytes(b.read_bytes()[:-2]), r"p\.bin"),
    "bin too long": (lambda b, i: b.write_bytes(b.read_bytes() + b"\0\0"), r"p\.bin"),
    "idx truncated": (lambda b, i: i.write_bytes(i.read_bytes()[:-1]), r"p\.idx"),
    "idx cut in its header": (lambda b, i: i.write_bytes(i.read_bytes()[:20]), r"p\.idx"),
    "bin and idx swapped": (lambda b, i: swap(b, i), r"no MMIDIDX index: .*p\.idx|wrong size"),
    "wrong dtype, float32": (lambda b, i: set_bytes(i, 17, b"\x07"), r"wrong token dtype: got code 7, .*p\.idx"),
    "wrong dtype, int16": (lambda b, i: set_bytes(i, 17, b"\x03"), r"wrong token dtype: got code 3, .*p\.idx"),
    "wrong dtype, int32": (lambda b, i: set_bytes(i, 17, b"\x04"), r"pointers disagree"),
    "unknown version": (lambda b, i: set_bytes(i, 9, b"\x02"), r"unknown index version: got 2, .*p\.idx"),
    "huge sequence count": (lambda b, i: set_bytes(i, 18, b"\xff" * 7), r"incomplete or swapped: .*p\.idx"),
    "negative length": (lambda b, i: set_bytes(i, LENGTHS_AT + 3, b"\xff"), r"negative length"),
    "wrong pointer": (lambda b, i: set_bytes(i, POINTERS_AT + 8, b"\x08"), r"pointers disagree .*"),
    "boundaries backwards": (lambda b, i: set_bytes(i, INDICES_AT + 8, b"\x07"), r"boundaries go backwards"),
    "boundaries past the end": (lambda b, i: set_bytes(i, INDICES_AT + 16, b"\x07"), r"do not span"),
    "mode of no meaning": (lambda b, i: set_bytes(i, MODES_AT, b"\x02"), r"neither 0 nor 1"),
}


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_refused_at_open_by_name(tmp_path, prefix, fault, with_manifest):
    damage, message = FAULTS[fault]
    if not with_manifest:
        (tmp_path / "p.json").unlink()
    damage(tmp_path / "p.bin", tmp_path / "p.idx")
    with pytest.raises(IntegrityError, match=message if not with_manifest else r"p\.(bin|idx)") as caught:
        IndexedReader(prefix)
    assert str(tmp_path / "p.") in str(caught.value)


def test_an_index_without_modes_is_refused(tmp_path, prefix):
    (tmp_path / "p.json").unlink()
    (tmp_path / "p.idx").write_bytes((tmp_path / "p.idx").read_bytes()[:-6])
    with pytest.raises(IntegrityError, match="has no sequence modes"):
        IndexedReader(prefix)


def test_an_index_without_documents_is_refused(tmp_path):
    (tmp_path / "p.bin").write_bytes(b"\0\0")
    (tmp_path / "p.idx").write_bytes(HEADER.pack(b"MMIDIDX\x00\x00", 1, 8, 0, 1) + struct.pack("<q", 0))
    with pytest.raises(IntegrityError, match=r"holds no document: .*p\.idx"):
        IndexedReader(tmp_path / "p")


def test_files_of_two_runs_are_refused(tmp_path):
    write(tmp_path / "p")
    write(tmp_path / "q", counts=[4, 2], modes=[0, 1, 0, 1, 0, 1])
    write(tmp_path / "r", tokens=[*TOKENS, 2], lengths=[*LENGTHS[:-1], 3])
    (tmp_path / "p.bin").write_bytes((tmp_path / "r.bin").read_bytes())
    with pytest.raises(IntegrityError, match=r"wrong size: .*p\.bin"):
        IndexedReader(tmp_path / "p")
    manifest = json.loads((tmp_path / "q.json").read_text())
    (tmp_path / "q.json").write_text(json.dumps(sealed({**manifest, "documents": 3})))
    with pytest.raises(IntegrityError, match=r"documents is 2, .*q\.json says 3"):
        IndexedReader(tmp_path / "q")


def test_no_flipped_bit_passes_verification(tmp_path):
    rng = np.random.default_rng(0)
    write(tmp_path / "p", origins=np.array([[0, 1], [0, 2]]), content={"inputs": [{"path": "a"}]})
    names = ["p.bin", "p.idx", "p.origin.npy"]
    for _ in range(300):
        path = tmp_path / names[rng.integers(len(names))]
        original = path.read_bytes()
        position = int(rng.integers(len(original)))
        set_bytes(path, position, bytes([original[position] ^ (1 << int(rng.integers(8)))]))
        with pytest.raises(IntegrityError, match=path.name.replace(".", r"\.")):
            IndexedReader(tmp_path / "p").verify()
        path.write_bytes(original)
    IndexedReader(tmp_path / "p").verify()


def test_leaving_the_writer_early_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), IndexedWriter(tmp_path / "p", 100) as writer:
        writer.add_documents(np.array(TOKENS), np.array(LENGTHS), np.array(MODES), np.array(COUNTS))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_an_older_index_stays_until_the_new_one_is_complete(tmp_path, prefix):
    before = (tmp_path / "p.bin").read_bytes()
    with IndexedWriter(prefix, 100) as writer:
        writer.add_documents(np.array([5, 2]), np.array([1, 1]), np.array([0, 1]), np.array([2]))
        assert (tmp_path / "p.bin").read_bytes() == before
        writer.finish()
    assert len(IndexedReader(prefix)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.bin", "p.idx", "p.json"]


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_not(tmp_path):
    code = (
        "import os, signal, sys, numpy as np\n"
        "from megatron_huatuo.storage.indexed_writer import IndexedWriter\n"
        "writer = IndexedWriter(sys.argv[1], 100)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    prefix = str(tmp_path / "p")
    assert subprocess.run([sys.executable, "-c", code, prefix], check=False).returncode == -9
    assert len(list(tmp_path.glob(".p.*.staging"))) == 1
    with IndexedWriter(prefix, 100) as living:
        write(prefix)
        assert len(list(tmp_path.glob(".p.*.staging"))) == 1
        living.add_documents(np.array([5, 2]), np.array([1, 1]), np.array([0, 1]), np.array([2]))
        living.finish()
    assert len(IndexedReader(prefix)) == 1
    assert list(tmp_path.glob(".p.*.staging")) == []


def test_two_writers_of_one_name_never_mix(tmp_path):
    prefix = str(tmp_path / "p")

    def work(token):
        for _ in range(15):
            write(prefix, tokens=[token] * 13)

    threads = [threading.Thread(target=work, args=(token,)) for token in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = IndexedReader(prefix)
    reader.verify()
    assert len(set(reader.tokens.tolist())) == 1


@pytest.mark.parametrize("name", ["病 历", "a.b", "ü'\""])
def test_any_file_name_works(tmp_path, name):
    write(tmp_path / name)
    reader = IndexedReader(tmp_path / name)
    reader.verify()
    assert len(reader) == 2


def test_token_dtype_follows_stock_megatron():
    from megatron.core.datasets.indexed_dataset import DType

    for vocab_size in (1, 65499, 65500, 65536, 125696):
        assert token_dtype(vocab_size) == DType.optimal_dtype(vocab_size)
