"""Exported tokenizers: plain transformers gives the ids of our index, and special tokens in text stay text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import transformers

from megatron_huatuo.export.verify import compare_tokens
from megatron_huatuo.hf.tokenizer_files import write_tokenizer_files
from megatron_huatuo.index.chat_format import encode_conversations, render
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.storage.records import Conversation, Turn

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
        path.write_text(json.dumps(content))
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
    assert compare_tokens(ours.path.parent, Path(theirs.name_or_path)) > 0
