"""The project's own vocabulary: same ids everywhere, same bytes every time."""

import json

import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.storage.manifest import read_manifest, verify_files


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path):
    documents = [
        {"id": n, "source": "s", "language": "zh", "title": "高血压", "text": f"高血压患者应低盐饮食。\n血压 {n} 次"}
        for n in range(30)
    ]
    talks = [
        {"conversations": [{"from": "human", "value": "q：x？\nA"}, {"from": "gpt", "value": "take aspirin"}]}
    ] * 30
    return write_lines(tmp_path / "documents.jsonl", *documents), write_lines(tmp_path / "talks.jsonl", *talks)


def test_transformers_gives_the_same_ids(trained, tmp_path):
    """The promise to a Hugging Face export, for every text that has nothing to do with special tokens."""
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(trained), AutoTokenizer.from_pretrained(trained)
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (2, 1, 0)
    assert len(theirs) == ours.vocab_size
    for text in (
        "<问>：头痛怎么办？\n<答>：多休息、多喝水。",
        "  two  spaces\n\nand\ttabs ",
        "龘𠀀 e\u0301 ｆ１② 123,456",
        "Aspirin 100 mg（阿司匹林）",
    ):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text


def test_layout_of_ids_is_that_of_llama_and_baichuan2(trained):
    tokenizer = load_tokenizer(trained)
    assert (tokenizer.unk_id, tokenizer.eos_id) == (0, 2)
    assert tokenizer.vocab_size <= 800
    assert 0 not in tokenizer.encode("龘𠀀\U0001f600"), "bytes stand in for what was never seen"


def test_every_sign_of_a_role_tag_stands_alone(trained):
    tokenizer = load_tokenizer(trained)
    for text in ("<问>：", "\n<答>：", "。\n", "：（", "：高血压", ">：", "\n\n"):
        pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
        assert all(len(piece) == 1 for piece in pieces if set(piece) & set("<>：\n"))


def test_same_input_gives_the_same_bytes_and_a_manifest(corpus, tmp_path):
    manifests = [train_tokenizer(corpus, tmp_path / name, 400) for name in ("a", "b")]
    assert manifests[0]["files"] == manifests[1]["files"]
    verify_files(tmp_path / "a", read_manifest(tmp_path / "a", "tokenizer"))
    train_tokenizer(corpus, tmp_path / "a", 400)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "manifest.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip


def test_too_small_a_vocabulary_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot train 100 pieces on these texts.*Fix --vocab-size"):
        train_tokenizer(corpus, tmp_path / "t", 100)
    assert not (tmp_path / "t").exists()


def test_input_without_text_is_refused(tmp_path):
    blank = write_lines(tmp_path / "blank.jsonl", {"id": 1, "source": "s", "language": "zh", "text": " \n"})
    for inputs in ([], [blank]):
        with pytest.raises(DataError, match="no text to train a tokenizer on"):
            train_tokenizer(inputs, tmp_path / "t", 400)


def test_bad_lines_stop_training_unless_allowed(corpus, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": 5}\n{oops\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        train_tokenizer([*corpus, bad], tmp_path / "t", 400)
    manifest = train_tokenizer([*corpus, bad], tmp_path / "t", 400, max_bad_lines=2)
    assert sum(manifest["dropped"].values()) == 2
