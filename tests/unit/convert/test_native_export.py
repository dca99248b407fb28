"""An export of a model that was trained with its tokenizer's own chat template: the template unchanged, training's ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_huatuo.convert.publish import _write_settings
from megatron_huatuo.convert.served_format import ServedFormat, served_format
from megatron_huatuo.convert.token_ids import compare_tokens, has_template_of
from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.index.formats.chat_template import read_chat_template
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.storage.records import Conversation, Turn
from tests.unit.convert.small_models import SMALL
from tests.unit.convert.test_tokenizer_files import _llama_2

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "tokenizers"
# In the shape of Qwen's: a default system turn, line breaks between turns, a default that a trailing line break ends.
CHATML = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are a doctor.<|im_end|>\\n' }}{%- endif %}\n"
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
VALUES = ("高血压患者平时应该注意什么？", "低盐饮食，多运动。\n\n", "药？\n", "What </x> is: 3.5 mg")


def chatml_tokenizer(folder: Path, template: Any = CHATML, *, as_file: bool = False) -> Path:
    """A tokenizer.json as Qwen publishes its own: byte-level BPE, a base model's end token, `<|im_end|>` for turns."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    folder.mkdir(parents=True)
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([*VALUES * 5, *["\n  可以"] * 9, "user\n", "assistant\n", "？\n"], trainer)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    made.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": None, "add_prefix_space": False,
        "tokenizer_class": "Qwen2Tokenizer", "clean_up_tokenization_spaces": False, "model_max_length": 131072,
    }  # fmt: skip
    if as_file:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _sentencepiece(folder: Path) -> Path:
    _llama_2(folder)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": LLAMA_2}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _published(name: str) -> Path:
    if not (PUBLISHED / name).is_dir():
        pytest.skip(f"no published tokenizer: {PUBLISHED / name}")
    return PUBLISHED / name


def checkpoint_of(folder: Path, tokenizer: Path, chat_formats: dict[str, str]) -> Path:
    """What an export reads of a checkpoint to know how it is served."""
    folder.mkdir()
    load_tokenizer(tokenizer).copy_to(folder / "tokenizer")
    (folder / "training.json").write_text(json.dumps({"chat_formats": chat_formats}))
    return folder


def write_export(root: Path, served: ServedFormat, family: str) -> dict[str, Any]:
    """The settings of an export; content of its generation_config.json."""
    root.mkdir()
    _write_settings(root, SMALL[family], served, "float32")
    return json.loads((root / "generation_config.json").read_text())


@pytest.fixture(
    params=["chatml in settings", "chatml in a file", "tokenizer.model", "qwen3", "llama3_1"], scope="module"
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(served format, the tokenizer's source, the export's directory)."""
    root = tmp_path_factory.mktemp("native")
    if request.param.startswith("chatml"):
        source, family = chatml_tokenizer(root / "source", as_file=request.param.endswith("file")), "qwen2"
    elif request.param == "tokenizer.model":
        source, family = _sentencepiece(root / "source"), "llama"
    else:
        source, family = _published(request.param), "qwen3-tied" if request.param == "qwen3" else "llama"
    checkpoint = checkpoint_of(root / "checkpoint", source, {"web": "native", "notes": "text"})
    served = served_format(checkpoint, load_tokenizer(checkpoint / "tokenizer"))
    write_export(root / "out", served, family)
    return served, source, root / "out"


@pytest.mark.slow
def test_the_template_is_written_unchanged_for_new_and_old_transformers(exported) -> None:
    served, source, out = exported
    published = read_chat_template(source)
    assert published is not None and served.template is not None
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (out / "chat_template.jinja").read_bytes().decode("utf-8") == settings["chat_template"] == published.text
    for name in ("tokenizer.json", "tokenizer.model"):
        assert not (source / name).is_file() or (out / name).read_bytes() == (source / name).read_bytes()
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == published.text


@pytest.mark.slow
def test_transformers_gives_the_ids_of_training(exported, tmp_path: Path) -> None:
    served, _, out = exported
    turns = tuple(Turn("gpt" if number % 2 else "human", value) for number, value in enumerate(VALUES))
    trained = served.form.encode([Conversation("", turns)]).tokens.tolist()
    messages = [{"role": ("user", "assistant")[number % 2], "content": value} for number, value in enumerate(VALUES)]
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.apply_chat_template(messages, return_dict=False) == trained
    found = compare_tokens(served, out)
    assert found.different == 0 and found.equal >= 6
    (out / "chat_template.jinja").rename(tmp_path / "away")  # what transformers before that file reads
    try:
        assert compare_tokens(served, out) == found
    finally:
        (tmp_path / "away").rename(out / "chat_template.jinja")


def test_answers_end_with_the_template_s_token_and_the_document_s(exported) -> None:
    served, _, out = exported
    names = [transformers.AutoTokenizer.from_pretrained(out).convert_ids_to_tokens(one) for one in served.end_ids]
    assert names in (
        ["<|im_end|>", "<|endoftext|>"],
        ["</s>"],
        ["<|im_end|>"],
        ["<|eot_id|>"],
        ["<|eot_id|>", "<|end_of_text|>"],
    )
    expected = served.end_ids[0] if len(served.end_ids) == 1 else list(served.end_ids)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text())["eos_token_id"] == expected


@pytest.mark.slow
def test_another_template_in_the_directory_is_refused(exported, tmp_path: Path) -> None:
    served, _, out = exported
    original = (out / "chat_template.jinja").read_bytes()
    assert has_template_of(served, out)
    try:
        (out / "chat_template.jinja").write_text("{{ no template")
        assert not has_template_of(served, out)
        (out / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        assert not has_template_of(served, out)
        with pytest.raises(IntegrityError, match=r"chat template gives other ids .* --allow-token-mismatch"):
            compare_tokens(served, out)
        assert compare_tokens(served, out, allow_mismatch=True).different >= 6
    finally:
        (out / "chat_template.jinja").write_bytes(original)


def test_a_list_of_templates_is_kept_as_a_list(tmp_path: Path) -> None:
    many = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools }}"}]
    source = chatml_tokenizer(tmp_path / "source", many)
    checkpoint = checkpoint_of(tmp_path / "checkpoint", source, {"web": "native"})
    (checkpoint / "tokenizer" / "chat_template.jinja").write_text(CHATML)  # as a training writes it there
    served = served_format(checkpoint, load_tokenizer(checkpoint / "tokenizer"))
    write_export(tmp_path / "out", served, "llama")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.chat_template == {one["name"]: one["template"] for one in many}
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert compare_tokens(served, tmp_path / "out").different == 0


def test_an_answer_that_the_tokenizer_joins_to_the_template_has_no_prompt_of_its_own(tmp_path: Path) -> None:
    """One token for the template's line break and the answer's spaces, as SmolLM2 has: known, counted, no difference."""
    checkpoint = checkpoint_of(tmp_path / "checkpoint", chatml_tokenizer(tmp_path / "source"), {"web": "native"})
    served = served_format(checkpoint, load_tokenizer(checkpoint / "tokenizer"))
    joined = Conversation("", (Turn("human", "a"), Turn("gpt", "  可以 b")))
    assert served.form.encode([joined]).counts["answers_joined_to_template"] == 1
    write_export(tmp_path / "out", served, "llama")
    assert compare_tokens(served, tmp_path / "out") == (7, 0)


@pytest.mark.parametrize(
    ("formats", "is_native"),
    [
        ({"web": "huatuo2", "sft": "native"}, True),
        ({"web": "text", "sft": "native"}, True),
        ({"web": "huatuo2", "sft": "huatuo2"}, False),
        ({"web": "huatuo2", "notes": "text"}, False),
        ({}, False),
    ],
)
def test_one_native_source_decides(tmp_path: Path, caplog, formats: dict[str, str], is_native: bool) -> None:
    checkpoint = checkpoint_of(tmp_path / "checkpoint", chatml_tokenizer(tmp_path / "source"), formats)
    served = served_format(checkpoint, load_tokenizer(checkpoint / "tokenizer"))
    assert (served.template is not None) == is_native
    warned = "sources in the recipe's format beside native ones: web. The export has" in caplog.text
    assert warned == (is_native and formats["web"] == "huatuo2")
    write_export(tmp_path / "out", served, "llama")
    assert compare_tokens(served, tmp_path / "out").different == 0
    assert (tmp_path / "out" / "chat_template.jinja").exists() == is_native


def test_a_base_model_s_settings_lend_their_other_ends(tmp_path: Path) -> None:
    """generation_config.json of Qwen's chat models has both ends already; of the base model, one."""
    source = chatml_tokenizer(tmp_path / "source")
    ends = {name: load_tokenizer(source).control_tokens[name].number for name in ("<|im_end|>", "<|endoftext|>")}
    both = [ends["<|im_end|>"], ends["<|endoftext|>"]]
    for number, (named, expected) in enumerate([([*both, 7], [*both, 7]), (ends["<|endoftext|>"], both)]):
        content = {"eos_token_id": named, "do_sample": True, "temperature": 0.6}
        (source / "generation_config.json").write_text(json.dumps(content))
        checkpoint = checkpoint_of(tmp_path / f"checkpoint{number}", source, {"web": "native"})
        served = served_format(checkpoint, load_tokenizer(checkpoint / "tokenizer"))
        assert write_export(tmp_path / f"out{number}", served, "llama") == content | {"eos_token_id": expected}


def test_a_checkpoint_without_its_template_is_refused(tmp_path: Path) -> None:
    source = chatml_tokenizer(tmp_path / "source")
    checkpoint = checkpoint_of(tmp_path / "checkpoint", source, {"web": "native"})
    (checkpoint / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    with pytest.raises(DataError, match=r"no chat template: .*checkpoint/tokenizer holds none\. Put its chat_template"):
        served_format(checkpoint, load_tokenizer(checkpoint / "tokenizer"))
