"""The kernel's byte pair encoding: the ids of each tokenizer's own library, or the library itself."""

import copy
import itertools
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo._ext import load_kernel
from megatron_huatuo.index import pair_encoder
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.pair_encoder import PairEncoder, byte_level_encoder
from megatron_huatuo.index.tokenizer import HuggingFaceTokenizer, load_tokenizer
from megatron_huatuo.storage.record_files import read_records
from tests.unit.index.test_index_tokenizer import MIXED, SPLIT

pytestmark = pytest.mark.skipif(load_kernel() is None, reason="the compiled kernel is missing: `setup.py build_ext`")

ROOT = Path(__file__).parents[3]
SHARED = ROOT / "../shared/data"
SAMPLES = sorted((ROOT / "examples/toy_cpu/data").glob("*.jsonl"))
PUBLISHED = {"baichuan2": "baichuan2/tokenizer.model", "qwen3": "tokenizers/qwen3", "llama3_1": "tokenizers/llama3_1"}
PARTS = [
    "'s",
    "'LL",
    "'ſ",
    "<think>",
    "<sep>",
    "。。",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\u3000",
    "\u00a0",
    "12345",
    "高血压",
    "é",
    "e\u0301",
]
# Any Unicode, and what the patterns look at, side by side.
TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.one_of(st.sampled_from(PARTS), st.text(alphabet="abcſst' 1高血，。\n\t\u200b", max_size=5)), max_size=12
    ).map("".join),
)


def _texts_of(path):
    """Every text of a JSON file, whatever its layout."""
    if isinstance(path, str):
        return [path]
    if isinstance(path, dict):
        path = [*path.values()]
    return [text for part in path for text in _texts_of(part)] if isinstance(path, list) else []


SAMPLE = [
    text for path in SAMPLES for record in read_records(path, lambda raw, where: [raw]) for text in _texts_of(record)
]
LONG = ["a" * 1000 + "血" * 1000 + " " * 1000 + "。" * 1000, "".join(SAMPLE[:50])]


def _byte_level(directory, **changes):
    """A small tokenizer of the kind of Qwen and Llama 3, trained on the sample, with parts of its file changed."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    built = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated")
    built.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(SAMPLE + MIXED, trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet))
    built.add_special_tokens(["</s>"])
    built.add_tokens(["<think>"])
    content = json.loads(built.to_str())
    for path, value in changes.items():
        place = content
        *parents, last = path.split("__")
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[last] = value(place[last]) if callable(value) else value
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return load_tokenizer(directory)


def _sentencepiece(path, **changes):
    import sentencepiece

    settings = {
        "model_type": "bpe",
        "vocab_size": 1500,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "character_coverage": 0.99,
        "user_defined_symbols": ["<sep>", "。", "。。", "\n"],
        "minloglevel": 2,
    }
    texts = iter(text for whole in SAMPLE for text in whole.split("\n") if text)
    with open(path, "wb") as handle:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=handle, hard_vocab_limit=False, **{**settings, **changes}
        )
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def tokenizers_by_name(tmp_path_factory):
    """Those of which the kernel knows every step, each with its encoder as another process gets it."""
    folder = tmp_path_factory.mktemp("pairs")
    found = {
        "three digits": _byte_level(folder / "three"),
        "one digit, composed": _byte_level(
            folder / "one",
            normalizer={"type": "NFC"},
            pre_tokenizer__pretokenizers__0__pattern={"Regex": SPLIT.replace("{1,3}", "")},
        ),
        # Pieces that no merge gives: whole words of the text that are pieces all the same.
        "whole words": _byte_level(folder / "whole", model__ignore_merges=True, model__merges=lambda all: all[::2]),
        "sentencepiece": _sentencepiece(folder / "tokenizer.model"),
    }
    return {name: (one, pickle.loads(pickle.dumps(one.find_pairs()))) for name, one in found.items()}


def _check_same(tokenizer, pairs, texts):
    for text, ours, theirs in zip(
        texts, pairs.encode_batch(texts, tokenizer.encode_batch), tokenizer.encode_batch(texts), strict=True
    ):
        assert ours.tolist() == theirs.tolist(), text
        assert ours.dtype == np.int32


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=8))
def test_ids_are_the_librarys_for_any_text(tokenizers_by_name, texts):
    for tokenizer, pairs in tokenizers_by_name.values():
        _check_same(tokenizer, pairs, texts)


def test_ids_are_the_librarys_for_the_sample_and_long_runs(tokenizers_by_name):
    for tokenizer, pairs in tokenizers_by_name.values():
        _check_same(tokenizer, pairs, [*MIXED, *LONG, *SAMPLE])


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_are_the_librarys_for_published_tokenizers(name):
    path = SHARED / PUBLISHED[name]
    if not path.exists():
        pytest.skip(f"no published tokenizer at {path}")
    tokenizer = load_tokenizer(path)
    pairs = tokenizer.find_pairs()
    files = [*SHARED.glob("huatuo100_single_turn/*.json"), *SHARED.glob("*.jsonl")]
    shared = [
        text for file in files for record in read_records(file, lambda raw, where: [raw]) for text in _texts_of(record)
    ]
    _check_same(tokenizer, pairs, [*MIXED, *LONG, *SAMPLE, *shared])

    @settings(max_examples=60, deadline=None)
    @given(texts=st.lists(TEXTS, max_size=8))
    def check(texts):
        _check_same(tokenizer, pairs, texts)

    check()


CHANGES = {
    "model__dropout": 0.1,
    "model__unk_token": "a",
    "model__type": "Unigram",
    "model__new_setting": True,
    "normalizer": {"type": "NFKC"},
    "pre_tokenizer__pretokenizers__0__pattern": {"Regex": SPLIT[:-5]},
    "pre_tokenizer__pretokenizers__0__behavior": "Removed",
    "pre_tokenizer__pretokenizers__1__add_prefix_space": True,
    "model__vocab": {"a": 0},
}


def test_a_tokenizer_with_another_setting_is_left_to_its_library(tmp_path, tokenizers_by_name):
    content = json.loads(tokenizers_by_name["three digits"][0].path.read_text())
    assert byte_level_encoder(content) is not None
    for path, value in CHANGES.items():
        changed = place = copy.deepcopy(content)
        *parents, last = path.split("__")
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[last] = value
        assert byte_level_encoder(changed) is None, path
    for number, change in enumerate(({"add_dummy_prefix": True}, {"model_type": "unigram"}, {"byte_fallback": False})):
        assert _sentencepiece(tmp_path / f"{number}.model", **change).find_pairs() is None, change


def _write_conversations(path):
    with open(path, "w", encoding="utf-8") as handle:
        for question, answer in itertools.pairwise(SAMPLE):
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            if question.strip() and answer.strip():
                handle.write(json.dumps({"conversations": turns}, ensure_ascii=False) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["three digits", "sentencepiece"])
def test_an_index_is_the_same_whoever_encodes(tmp_path, tokenizers_by_name, monkeypatch, caplog, name):
    tokenizer, pairs = tokenizers_by_name[name]
    _write_conversations(tmp_path / "in.jsonl")

    def build_with(output, workers=1):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="megatron_huatuo"):
            build_index([tmp_path / "in.jsonl"], tmp_path / output, tokenizer.path, workers=workers)
        return caplog.text, [(tmp_path / f"{output}.{end}").read_bytes() for end in ("bin", "idx", "origin.npy")]

    said, by_library = build_with("library")
    assert "encoded" not in said  # too little text to be worth a second
    monkeypatch.setattr(pair_encoder, "WORTH_A_START_BYTES", 0)
    said, by_kernel = build_with("kernel", workers=2)
    assert "is encoded by the compiled kernel" in said and by_kernel == by_library

    kind = type(tokenizer)
    reversed_merges = copy.deepcopy(dict(pairs.arguments))
    key = "merges" if kind is HuggingFaceTokenizer else "ranks"
    reversed_merges[key] = reversed_merges[key][::-1]
    monkeypatch.setattr(kind, "find_pairs", lambda self: PairEncoder(pairs.name, reversed_merges, pairs.added))
    said, by_library_again = build_with("differing")
    assert "the compiled kernel gives other ids than the library" in said and by_library_again == by_library

    monkeypatch.setattr(kind, "find_pairs", lambda self: None)
    said, by_library_again = build_with("unknown")
    assert "encoded by its own library" in said and by_library_again == by_library


def test_without_a_kernel_the_library_encodes(tokenizers_by_name, monkeypatch):
    monkeypatch.setattr("megatron_huatuo.index.pair_encoder.load_kernel", lambda: None)
    for tokenizer, _ in tokenizers_by_name.values():
        assert tokenizer.find_pairs() is None


def test_what_the_kernel_cannot_read_is_refused():
    kernel = load_kernel()
    byte_pieces = [bytes([byte]) for byte in range(256)]
    merges, kinds = np.zeros((0, 3), np.int32), np.zeros(128, np.uint8)
    for change, message in (
        ({"pieces": byte_pieces[1:]}, "byte 0 is no piece"),
        ({"merges": np.zeros((1, 2), np.int32)}, r"wrong merges: need \[number, 3\]"),
        ({"merges": np.array([[-1, 0, 0]], np.int32)}, "wrong merge: need whole numbers from 0"),
        ({"longest_number": 0}, "wrong longest_number: got 0, need at least 1"),
    ):
        given = {"pieces": byte_pieces, "merges": merges, "kinds": kinds, "longest_number": 1, "prefer_whole": False}
        with pytest.raises(ValueError, match=message):
            kernel.ByteLevelEncoder(**given | change)
    with pytest.raises(ValueError, match="wrong number of entries: need one for each of 1 pieces, and 256 byte_ids"):
        kernel.SentencePieceEncoder(pieces=["a"], ranks=[], user_defined=[""], byte_ids=[])
