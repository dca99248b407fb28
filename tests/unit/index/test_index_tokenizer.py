"""Tokenizers: text stays text, ids are the library's own, and the right files are found."""

import json

import numpy as np
import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.index.tokenizer import load_tokenizer
from tests.unit.index.hand_tokenizer import BOS, EOS, UNK, character_model, save_tokenizer

MIXED = [
    "高血压 hypertension（BP ≥ 140/90 mmHg）的治疗",
    "  two  spaces\n\nand\ttabs ",
    "</s><s><unk>",
    "<问>：你好</s>\n<答>：a",
    "龘𠀀 e\u0301 ｆ１",
    "\u200b\ufeff\u202e\0",
    "",
]


def test_published_model_gives_sentencepieces_own_ids(baichuan2):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(baichuan2))
    tokenizer = load_tokenizer(baichuan2)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.unk_id) == (125696, 2, 0)
    assert tokenizer.encode("<问>：") == [92655, 92614, 92574, 70]
    assert tokenizer.encode("\n<答>：") == [5, 92655, 93140, 92574, 70]
    for text, ids in zip(MIXED, tokenizer.encode_batch(MIXED), strict=True):
        assert ids.tolist() == reference.encode(text) == tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert not {1, 2} & set(ids.tolist())
        assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.files == {"tokenizer.model": baichuan2}


def test_special_token_text_gives_no_control_id(trained, by_hand):
    for tokenizer in (load_tokenizer(trained), load_tokenizer(by_hand)):
        for text in ("</s>", "<s>", "a</s>b", "</s></s>", "<unk>"):
            assert not {BOS, EOS} & set(tokenizer.encode(text))


def test_nothing_is_added_cut_or_padded(by_hand):
    """The file asks for a bos, truncation to 4 and padding to 64: none of it happens."""
    tokenizer = load_tokenizer(by_hand)
    assert tokenizer.encode("头痛休息药不") == [9, 10, 11, 12, 13, 14]
    assert tokenizer.encode("头?") == [9, UNK]
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.unk_id == UNK and tokenizer.vocab_size == 17


# Words, numbers of up to three digits, marks with the line breaks behind them, white space (as Llama-3 publishes it).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("split", [None, SPLIT], ids=["GPT-2's words", "Llama-3's words"])
def test_byte_level_tokenizer_json_comes_back_to_the_same_text(tmp_path, split):
    """The kind of Llama-3 and Qwen2.5: byte-level BPE with an end-of-text token behind the vocabulary."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        words = pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated")
        built.pre_tokenizer = pre_tokenizers.Sequence([words, built.pre_tokenizer])
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(MIXED, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    built.add_special_tokens(["<|end_of_text|>"])
    built.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [built.get_vocab_size() - 1, 5]}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_id == tokenizer.vocab_size - 1 and tokenizer.unk_id is None
    assert tokenizer.encode("1234a<|end_of_text|>") != built.encode("1234a<|end_of_text|>").ids
    for text in [*MIXED, "1234567 don't ？\n\n<答>：", "a<|end_of_text|>b"]:
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == text
        assert tokenizer.encode_batch([text], continues=True)[0].tolist() == ids
        if "<|" not in text:
            assert built.encode(text).ids == ids


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": "</s>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "</s>", "lstrip": False}}),
        ("special_tokens_map.json", {"eos_token": {"content": "</s>"}}),
        ("config.json", {"eos_token_id": EOS}),
    ],
)
def test_end_of_document_token_is_found_beside_tokenizer_json(tmp_path, name, content):
    directory = save_tokenizer(tmp_path / "t", character_model(), companions=False)
    with pytest.raises(ConfigError, match=r"no end-of-document token: need 'eos_token' in .*tokenizer_config\.json"):
        load_tokenizer(directory)
    (directory / name).write_text(json.dumps(content))
    assert load_tokenizer(directory).eos_id == EOS
    assert load_tokenizer(directory / "tokenizer.json").eos_id == EOS
    # config.json belongs to the model and is not copied with the tokenizer.
    load_tokenizer(directory).copy_to(tmp_path / "copy")
    assert not (tmp_path / "copy" / "config.json").exists()
    assert load_tokenizer(tmp_path / "copy").eos_id == EOS


def test_a_copy_keeps_the_settings_that_name_no_end(tmp_path):
    directory = save_tokenizer(tmp_path / "t", character_model(), companions=False)
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    (directory / "config.json").write_text(json.dumps({"eos_token_id": [EOS, BOS]}))
    load_tokenizer(directory).copy_to(tmp_path / "copy")
    settings = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert settings == {"model_max_length": 7, "eos_token": "</s>"}
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 99}))
    with pytest.raises(ConfigError, match=r"eos_token_id 99 of .*config\.json is not in .*tokenizer\.json"):
        load_tokenizer(directory)


def test_directory_prefers_tokenizer_json_and_names_the_files_to_export(by_hand, trained):
    (by_hand / "tokenizer.model").write_bytes((trained / "tokenizer.model").read_bytes())
    (by_hand / "merges.txt").write_text("")
    tokenizer = load_tokenizer(by_hand)
    assert tokenizer.path == by_hand / "tokenizer.json"
    assert tokenizer.files == {
        name: by_hand / name for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt")
    }
    from_model = load_tokenizer(trained)
    assert set(from_model.files) == {"tokenizer.model", "tokenizer_config.json"}
    assert load_tokenizer(trained / "tokenizer.model").sha256 == from_model.sha256 != tokenizer.sha256


def test_what_is_no_tokenizer_is_refused_by_name(tmp_path, by_hand):
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "garbage.model").write_bytes(b"\x00garbage" * 20)
    (tmp_path / "garbage.json").write_text("{}")
    for name in ("pointer.model", "pointer.json"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 135\n")
    for name, error, message in (
        ("absent.model", ConfigError, r"absent\.model does not exist"),
        ("", ConfigError, r"holds neither tokenizer\.json nor tokenizer\.model"),
        ("empty.model", DataError, r"empty\.model is empty"),
        ("garbage.model", DataError, r"not a SentencePiece model: .*garbage\.model"),
        ("garbage.json", DataError, r"not a tokenizer\.json: .*garbage\.json"),
        ("pointer.model", DataError, r"pointer of Git LFS instead of the file: .*pointer\.model"),
        ("pointer.json", DataError, r"pointer of Git LFS instead of the file: .*pointer\.json"),
    ):
        with pytest.raises(error, match=message):
            load_tokenizer(tmp_path / name)
    for content, error, message in (
        ("{", DataError, r"not JSON: .*tokenizer_config\.json"),
        ("[]", DataError, r"not a JSON object: .*tokenizer_config\.json"),
        ('{"eos_token": "<end>"}', ConfigError, r"eos_token '<end>' of .* is not in"),
        ('{"eos_token": 2}', ConfigError, r"eos_token 2 of .* is not in"),
    ):
        (by_hand / "tokenizer_config.json").write_text(content)
        with pytest.raises(error, match=message):
            load_tokenizer(by_hand)


def test_model_without_end_of_document_id_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 9), model_prefix=str(tmp_path / "m"), vocab_size=270, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, eos_id=-1, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="has no end-of-document id"):
        load_tokenizer(tmp_path / "m.model")


def test_reading_tokenizers_needs_neither_torch_nor_transformers(trained):
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from megatron_huatuo.index.build_index import build_index\n"
        "from megatron_huatuo.index.tokenizer import load_tokenizer\n"
        "load_tokenizer(sys.argv[1]).encode('a')\n"
        "assert not {'torch', 'transformers', 'megatron'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(trained)], check=True)
