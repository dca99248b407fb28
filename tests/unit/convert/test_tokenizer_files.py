"""Exported tokenizers: plain transformers gives the ids of our index, and special tokens in text stay text."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import transformers

from megatron_huatuo.convert import tokenizer_files
from megatron_huatuo.convert.served_format import ServedFormat
from megatron_huatuo.convert.token_ids import compare_tokens
from megatron_huatuo.convert.tokenizer_files import write_tokenizer_files
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.index.formats.chat_format import HuatuoFormat, encode_conversations, render
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.models.hf_config import config_json
from megatron_huatuo.storage.records import Conversation, Turn
from tests.unit.convert.small_models import SMALL

BAICHUAN = Path(__file__).parents[4] / "shared" / "data" / "baichuan2" / "tokenizer.model"
TEXTS = [
    "<问>：头痛怎么办？",
    "\n<答>：多喝水 and rest, 2024年 3.5 mg",
    "</s><s><unk> <reserved_106> <答>：",
    "  two  spaces\t tab\r\n",
    "A\u3000B é ñ 😀 漢字 ½ ﬁ\u200b",
    "\n\n\n",
    "",
]


def _sentencepiece(folder: Path) -> Path:
    folder.mkdir()
    lines = [
        json.dumps({"id": str(i), "source": "s", "language": "zh", "text": text}, ensure_ascii=False)
        for i, text in enumerate(
            ["高血压患者应当低盐饮食。" * 3, "Drink water and rest." * 3, "感冒多休息，多喝水。" * 3]
        )
    ]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    train_tokenizer([folder / "texts.jsonl"], folder / "tokenizer", 420)
    return folder / "tokenizer"


def byte_level_tokenizer(folder: Path) -> Path:
    """A tokenizer.json as Llama 3 and Qwen2.5 have it: byte-level BPE with a named end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["高血压患者应当低盐饮食。", "Drink water and rest."], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "eos_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{{ 'x' }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _llama_2(folder: Path) -> Path:
    """A SentencePiece model with the settings of Llama-2's and Yi's: BPE with a dummy prefix and byte fallback."""
    folder.mkdir()
    texts = ["高血压患者应当低盐饮食。", "Drink water and rest.", "感冒多休息，多喝水。", "<问>：头痛？", "<答>：a b"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 9),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=390,
        hard_vocab_limit=False,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        byte_fallback=True,
        pad_id=-1,
        minloglevel=2,
    )
    return folder


@pytest.fixture(scope="module", params=["baichuan2", "sentencepiece", "llama-2", "byte-level"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(our tokenizer, the exported one as transformers opens it)."""
    tmp_path = tmp_path_factory.mktemp("tokenizer")
    if request.param == "baichuan2":
        if not BAICHUAN.is_file():
            pytest.skip(f"no Baichuan2 tokenizer: {BAICHUAN}")
        source = BAICHUAN
    else:
        make = {"sentencepiece": _sentencepiece, "llama-2": _llama_2, "byte-level": byte_level_tokenizer}
        source = make[request.param](tmp_path / "source")
    ours = load_tokenizer(source)
    (tmp_path / "out").mkdir()
    write_tokenizer_files(ours, tmp_path / "out")
    return ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "out")


def test_ids_equal_those_of_the_index(exported) -> None:
    ours, theirs = exported
    has_prefix = len(ours.encode(" ")) == 2
    for text in TEXTS:
        # With a dummy prefix transformers adds none before a text that begins with a space. Conversations begin with a tag.
        expected = ours.encode(text)[1:] if has_prefix and text.startswith(" ") else ours.encode(text)
        assert theirs(text).input_ids == theirs(text, add_special_tokens=False).input_ids == expected, text


def test_special_tokens_in_text_stay_text(exported) -> None:
    ours, theirs = exported
    assert ours.eos_id == theirs.eos_token_id
    for text in ("</s>", "a</s>b", theirs.eos_token, "<答>：</s>"):
        assert theirs.eos_token_id not in theirs(text).input_ids
        assert theirs.decode(theirs(text).input_ids) == text


def test_chat_template_writes_what_was_trained_on(exported) -> None:
    ours, theirs = exported
    turns = [Turn("human", "头痛？"), Turn("gpt", "休息。"), Turn("human", "药 </s>？"), Turn("gpt", "不用。")]
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn.speaker], "content": turn.value} for turn in turns]
    assert theirs.apply_chat_template(messages, tokenize=False) == render(turns)
    prompt = theirs.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    assert prompt == render([*turns[:3], Turn("gpt", "")])
    ids = theirs.apply_chat_template(messages[:3], add_generation_prompt=True, return_dict=False)
    assert ids == ours.encode(prompt)
    with_system = [{"role": "system", "content": "你是医生。"}, *messages[:1]]
    assert theirs.apply_chat_template(with_system, tokenize=False) == "<问>：你是医生。\n头痛？"


def test_role_tags_of_baichuan2() -> None:
    if not BAICHUAN.is_file():
        pytest.skip(f"no Baichuan2 tokenizer: {BAICHUAN}")
    ours = load_tokenizer(BAICHUAN)
    assert ours.encode("<问>：") == [92655, 92614, 92574, 70]
    assert ours.encode("\n<答>：") == [5, 92655, 93140, 92574, 70]


TURNS = (
    Turn("human", " 头痛？ leading space"),
    Turn("gpt", "  two spaces, 漢 of bytes"),
    Turn("human", "药 </s><s>？"),
    Turn("gpt", "</s> 不用。"),
)


@pytest.fixture(scope="module", params=["tokenizer.model", "Prepend", "Metaspace"])
def llama_2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(our tokenizer, sentencepiece's own, the exported one as transformers opens it) of one model with a dummy prefix;
    ours from its `.model`, or from a tokenizer.json in either of the two ways that one says it."""
    root = tmp_path_factory.mktemp("llama-2")
    ours = load_tokenizer(_llama_2(root / "source"))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(ours.path))
    (root / "out").mkdir()
    write_tokenizer_files(ours, root / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(root / "out")
    if request.param != "tokenizer.model":
        theirs.save_pretrained(root / "json")
        path = root / "json" / "tokenizer.json"
        content = json.loads(path.read_text())
        if request.param == "Prepend":
            replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
            content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
            content["pre_tokenizer"] = None
        else:
            content["normalizer"] = None
            content["pre_tokenizer"] = {
                "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False
            }  # fmt: skip
        bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [reference.bos_id()], "tokens": ["<s>"]}},
        }
        path.write_text(json.dumps(content))
        settings = json.loads((root / "json" / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
        (root / "json" / "tokenizer_config.json").write_text(json.dumps(settings))
        ours = load_tokenizer(path)
    return ours, reference, theirs


def test_conversations_of_llama_2_have_the_ids_of_their_whole_text(llama_2) -> None:
    """The dummy prefix stands at the very start alone; control pieces in text are letters."""
    ours, reference, _ = llama_2
    turns = (Turn("human", "头痛？ leading space"), *TURNS[1:])
    encoded = encode_conversations([Conversation("a", turns)], ours)
    tokens = encoded.tokens.tolist()
    assert tokens == [*reference.encode(render(turns)), reference.eos_id()]
    assert {reference.bos_id(), reference.eos_id(), reference.unk_id()}.isdisjoint(tokens[:-1])
    tag = reference.encode("\n<答>：")[1:]
    ends = np.cumsum(encoded.sequence_lengths)
    assert [tokens[: ends[2 * number]][-len(tag) :] for number in (0, 1)] == [tag, tag]
    assert ours.decode(tokens[:-1]) == render(turns)


def test_served_conversations_of_llama_2_have_the_ids_that_were_trained_on(llama_2) -> None:
    ours, _, theirs = llama_2
    turns = (Turn("human", "头痛？"), Turn("gpt", "休息。"))
    messages = [{"role": "user", "content": "头痛？"}, {"role": "assistant", "content": "休息。"}]
    trained = encode_conversations([Conversation("a", turns)], ours).tokens.tolist()
    assert theirs.apply_chat_template(messages, return_dict=False) == trained[:-1]


def test_llama_2_is_served_without_bos(llama_2, tmp_path: Path) -> None:
    ours, *_ = llama_2
    write_config(tmp_path, "llama")
    write_tokenizer_files(ours, tmp_path)
    assert compare_tokens(recipe_format(ours), tmp_path) == (8, 0)
    if ours.path.suffix == ".json":
        before, after = (json.loads((folder / "tokenizer.json").read_text()) for folder in (ours.path.parent, tmp_path))
        assert after == before | {"post_processor": None}, "nothing else is changed"


def recipe_format(tokenizer: Tokenizer) -> ServedFormat:
    return ServedFormat(tokenizer, None, HuatuoFormat(tokenizer), (tokenizer.eos_id,))


def write_config(directory: Path, family: str) -> None:
    """config.json, by which transformers chooses the class of a tokenizer."""
    (directory / "config.json").write_text(json.dumps(config_json(SMALL[family], "float32")))


# How the published tokenizers cut text into pieces; a sign takes the line breaks behind it.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS, _OTHERS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PIECES = {
    "qwen2": f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_OTHERS}",
    "llama": f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_OTHERS}",
}


@pytest.fixture(scope="module", params=_PIECES)
def joining(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(ours, family) of a tokenizer as Qwen2.5 ("qwen2") and Llama-3 ("llama") publish theirs, with the piece "？\\n"."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = Tokenizer(models.BPE())
    isolated = pre_tokenizers.Split(Regex(_PIECES[request.param]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([isolated, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["什么？\n是。\n"] * 20, trainer)
    settings = {"eos_token": "<|endoftext|>", "bos_token": "<s>", "chat_template": "{{ 'x' }}"}
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if request.param == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        settings |= {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False}
    else:
        bos = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", tokenizer.token_to_id("<s>"))])
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, bos])
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder), request.param


_ENDS = ("头痛？", "休息。", "药？\n", "什么！）", "Why?\n\n", "是。  ")


def test_served_text_has_the_ids_of_its_segments(joining, tmp_path: Path, monkeypatch) -> None:
    ours, family = joining
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_config(tmp_path, family)
    write_tokenizer_files(ours, tmp_path, family)
    turns = tuple(Turn("gpt" if number % 2 else "human", text) for number, text in enumerate(_ENDS))
    trained = encode_conversations([Conversation("a", turns)], ours).tokens[:-1].tolist()
    assert ours.encode(render(turns)) != trained, "the published tokenizer joins text across the tags"
    for trusted in (False, True):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trusted)
        served = theirs(render(turns))
        assert served.input_ids == trained
        assert set(served) == {"input_ids", "attention_mask"}, "what generate() takes"
        assert theirs.decode(trained) == render(turns)
    assert compare_tokens(recipe_format(ours), tmp_path) == (8, 0)


def test_a_base_models_template_file_does_not_stand_before_the_one_that_was_trained_on(tmp_path: Path) -> None:
    source = byte_level_tokenizer(tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ 'x' }}")  # as transformers 5 saves a tokenizer
    (tmp_path / "out").mkdir()
    write_tokenizer_files(load_tokenizer(source), tmp_path / "out")
    served = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "a"}]
    assert served.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "<问>：a\n<答>："


def test_the_cuts_of_a_mistral_export_are_kept_without_a_warning(tmp_path: Path, caplog, monkeypatch) -> None:
    """transformers 5 replaces the first cut of Mistral's tokenizers with more than 100,000 pieces, or advises to."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    source, out = byte_level_tokenizer(tmp_path / "source"), tmp_path / "out"
    content = json.loads((source / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"x{number}": number for number in range(1000, 101_000)}
    (source / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"fix_mistral_regex": True}))
    out.mkdir()
    write_config(out, "mistral-window")
    write_tokenizer_files(load_tokenizer(source), out, "mistral")
    served = json.loads(transformers.AutoTokenizer.from_pretrained(out).backend_tokenizer.to_str())
    assert served["pre_tokenizer"] == json.loads((out / "tokenizer.json").read_text())["pre_tokenizer"]
    assert "regex" not in caplog.text


def test_an_exported_tokenizer_gives_an_index_the_same_ids(joining, tmp_path: Path) -> None:
    ours, family = joining
    (tmp_path / "one").mkdir()
    write_tokenizer_files(ours, tmp_path / "one", family)
    again = load_tokenizer(tmp_path / "one")
    assert (again.eos_id, again.vocab_size) == (ours.eos_id, ours.vocab_size)
    turns = tuple(Turn("gpt" if number % 2 else "human", text) for number, text in enumerate(_ENDS))
    before, after = (encode_conversations([Conversation("a", turns)], tokenizer) for tokenizer in (ours, again))
    assert np.array_equal(before.tokens, after.tokens)
    assert np.array_equal(before.sequence_lengths, after.sequence_lengths)
    (tmp_path / "two").mkdir()
    write_tokenizer_files(again, tmp_path / "two", family)
    assert load_tokenizer(tmp_path / "two").sha256 == again.sha256, "exported again it is the same file"


def test_text_that_is_joined_across_a_tag_is_found(joining, tmp_path: Path, monkeypatch) -> None:
    ours, family = joining
    write_config(tmp_path, family)
    monkeypatch.setattr(tokenizer_files, "_with_role_tags_apart", lambda part: part)
    write_tokenizer_files(ours, tmp_path, family)
    with pytest.raises(
        IntegrityError, match=r"tokenizer differs from the index: '<问>：高血压.* --allow-token-mismatch"
    ):
        compare_tokens(recipe_format(ours), tmp_path)
    found = compare_tokens(recipe_format(ours), tmp_path, allow_mismatch=True)
    assert found.different > 0 and found.equal + found.different == 8


@pytest.mark.parametrize("part", [{"type": "Metaspace", "prepend_scheme": "always"}, None])
def test_pieces_that_would_get_a_prefix_each_are_not_made_more(part) -> None:
    assert tokenizer_files._with_role_tags_apart(part) is part
    with_prefix = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    assert tokenizer_files._with_role_tags_apart(with_prefix) is with_prefix
