"""The index benchmark compares like with like, and says nothing when the machine was busy."""

from pathlib import Path

import pytest

from benchmarks import index
from benchmarks.measure import Timing, interleave, rate_record
from megatron_huatuo._ext import load_kernel
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.train_tokenizer import train_tokenizer

KEYS = {"name", "ours", "peer", "ratio", "unit", "runs", "machine", "versions", "command"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("benchmark")
    train_tokenizer(index._sample_files(), directory / "tokenizer", 3072)
    index._write_corpus(directory / "a.jsonl", 2)
    return directory / "a.jsonl", str(directory / "tokenizer")


@pytest.mark.slow
def test_megatrons_loop_and_ours_write_the_same_bytes(corpus, tmp_path):
    path, tokenizer = corpus
    build_index([path], tmp_path / "ours", tokenizer, workers=2)
    index._megatron_preprocess(path, str(tmp_path / "theirs"), tokenizer, 2)
    for suffix in ("bin", "idx"):
        assert Path(tmp_path / f"ours.{suffix}").read_bytes() == Path(tmp_path / f"theirs.{suffix}").read_bytes()


@pytest.mark.slow
def test_pipeline_records_have_the_contracts_keys(corpus):
    path, tokenizer = corpus
    records = index._pipeline_records(path, tokenizer, workers=2, repeats=1)
    assert all(set(record) >= KEYS for record in records)
    assert [record["name"] for record in records] == [
        "index: preprocess_data against the tokenizer alone",
        "index: preprocess_data against Megatron's loop",
    ]


@pytest.mark.slow
def test_peak_memory_compares_inputs_by_one_encoder_and_encoders_on_one_input(corpus, tmp_path, capfd):
    records = index._memory_records(tmp_path, corpus[1], 0.1)
    assert all(20 < record[side] < 500 for record in records for side in ("ours", "peer"))
    assert records[0]["peer"] == records[1]["ours"] and (tmp_path / "memory.idx").exists()
    said = [line for line in capfd.readouterr().err.splitlines() if "encoded by the compiled kernel" in line]
    assert len(said) == (0 if load_kernel() is None else 2)


def test_candidates_take_turns():
    calls = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3 and len(timings["a"]) == len(timings["b"]) == 2


@pytest.mark.parametrize(
    ("ours", "peer", "ratio"),
    [
        (Timing(2.0, 4.0), Timing(4.0, 8.0), 2.0),
        (Timing(2.0, 3.7), Timing(4.0, 7.3), 2.0),
        (Timing(2.0, 3.5), Timing(4.0, 8.0), None),  # ours had only 0.875 of its cores
        (Timing(2.0, 4.0), Timing(4.0, 7.0), None),
    ],
)
def test_a_ratio_is_refused_when_a_core_was_taken_away(ours, peer, ratio):
    record = rate_record(
        "n", work=10, unit="things/s", ours=[ours] * 3, peer=[peer] * 3, peer_name="p", threads=2, packages=("numpy",)
    )
    assert record["ratio"] == ratio and record["ours"] == 5 and record["peer"] == 2.5
    assert record["cpu_ratio"] == peer.cpu_s / ours.cpu_s
