"""Shards built apart and joined are the index of one build."""

import json

import pytest

from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.merge import merge_indexes
from megatron_huatuo.storage.indexed import IndexedReader


@pytest.fixture
def shards(tmp_path, trained):
    """Three input files and their indexes, the middle one with a bad line."""
    files = []
    for part in range(3):
        lines = []
        for number in range(20):
            turns = [
                {"from": "human", "value": f"{part}-{number}？"},
                {"from": "gpt", "value": "多休息。" * (part + 1)},
            ]
            lines.append(json.dumps({"conversations": turns}, ensure_ascii=False))
        files.append(tmp_path / f"part{part}.jsonl")
        files[-1].write_text("\n".join([*lines[:7], "{oops" if part == 1 else "", *lines[7:]]), encoding="utf-8")
        build_index([files[-1]], tmp_path / f"shard{part}", trained, max_bad_lines=1)
    return files


def test_merged_shards_are_the_index_of_one_build(tmp_path, shards, trained):
    whole = build_index(shards, tmp_path / "whole", trained, max_bad_lines=1)
    merged = merge_indexes([tmp_path / f"shard{part}" for part in range(3)], tmp_path / "merged")
    for suffix in ("bin", "idx", "origin.npy"):
        assert (tmp_path / f"merged.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    # other names, hence another seal; and each shard checks its own first chunk
    ignored = {"files": 0, "template": 0, "manifest_sha256": 0}
    assert {**merged, **ignored} == {**whole, **ignored}
    assert merged["template"] == {"checked": 60, "mismatched": 0}
    reader = IndexedReader(tmp_path / "merged")
    reader.verify()
    assert reader.origin(59) == (str(shards[2]), 21)
    assert merged["bad_lines"][0]["line"] == 8


def test_shards_that_do_not_fit_are_refused(tmp_path, shards, by_hand):
    turns = [{"from": "human", "value": "头"}, {"from": "gpt", "value": "痛"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": turns}), encoding="utf-8")
    build_index([tmp_path / "a.jsonl"], tmp_path / "other", by_hand)
    with pytest.raises(DataError, match=r"indexes do not fit together: tokenizer of .*other is '[0-9a-f]{64}'"):
        merge_indexes([tmp_path / "shard0", tmp_path / "other"], tmp_path / "merged")
    with pytest.raises(ConfigError, match="no index to merge"):
        merge_indexes([], tmp_path / "merged")
    content = bytearray((tmp_path / "shard1.bin").read_bytes())
    content[5] ^= 1
    (tmp_path / "shard1.bin").write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=r"shard1\.bin"):
        merge_indexes([tmp_path / "shard0", tmp_path / "shard1"], tmp_path / "merged")
    (tmp_path / "shard0.json").unlink()
    with pytest.raises(IntegrityError, match="has no manifest"):
        merge_indexes([tmp_path / "shard0"], tmp_path / "merged")
    assert not list(tmp_path.glob("merged*")) and not list(tmp_path.glob(".merged*"))
