"""Tokenizer files of a Hugging Face directory: plain transformers gives the ids of our index.

Invariant: the chat template writes what the model was trained on. The recipe's, `<问>：…\\n<答>：…` with turns joined by a
line break, needs settings of its own: the text of a special token stays text (`split_special_tokens`), nothing is added in
front or behind, and a role tag begins a piece of its own, since training encodes a conversation segment by segment and a
server its whole text. The tokenizer's own template is written unchanged, beside files that stay as they are published.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from megatron_huatuo.index.formats.chat_format import ANSWER_TAG, CHAT_TEMPLATE, QUESTION_TAG
from megatron_huatuo.index.formats.chat_template import TEMPLATE_FILE, ChatTemplate
from megatron_huatuo.index.tokenizer import SentencePieceTokenizer, Tokenizer
from megatron_huatuo.index.train_tokenizer import TOKENIZER_CONFIG
from megatron_huatuo.models.families import get_family
from megatron_huatuo.storage.manifest import read_json, write_json

# Settings of the base model that change no id. Its other ones may name remote code, or tokens that SentencePiece's own
# ids do not have.
_KEPT_WITH_SENTENCEPIECE = ("model_max_length", "padding_side", "truncation_side")
# What a template of its own needs: the tokens that it writes, and the list that it may be in.
_KEPT_WITH_TEMPLATE = ("added_tokens_decoder", "chat_template")

# Byte-level BPE (Llama-3, Qwen2.5) has pieces such as "？\\n", which would take the line break out of the tag behind it.
_ROLE_TAGS_APART = {
    "type": "Split",
    "pattern": {"Regex": f"\\n{QUESTION_TAG}|{ANSWER_TAG}"},
    "behavior": "MergedWithNext",
    "invert": False,
}


def write_tokenizer_files(
    tokenizer: Tokenizer,
    directory: str | os.PathLike[str],
    family: str = "llama",
    template: ChatTemplate | None = None,
) -> None:
    """Write a tokenizer's files into a Hugging Face directory, with the settings that give the index's ids.

    family: of the model that is published there (`Architecture.family`). template: the tokenizer's own, which training
    saw; None for the recipe's.
    """
    root = Path(directory)
    settings = tokenizer.files.get("tokenizer_config.json")
    config = read_json(settings) if settings else {}
    if isinstance(tokenizer, SentencePieceTokenizer):
        shutil.copyfile(tokenizer.path, root / "tokenizer.model")
        kept = (*_KEPT_WITH_SENTENCEPIECE, *(_KEPT_WITH_TEMPLATE if template else ()))
        config = {key: config[key] for key in kept if key in config} | _sentencepiece_config(tokenizer)
        if template is not None:
            config |= {"split_special_tokens": False, **template.special_tokens}
    else:
        for name, path in tokenizer.files.items():
            if name != TEMPLATE_FILE:
                shutil.copyfile(path, root / name)
        content = read_json(tokenizer.path)
        if template is None and (served := _as_served(content)) != content:
            write_json(root / "tokenizer.json", served)
        config.pop("auto_map", None)
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
        if template is None:
            config |= {"split_special_tokens": True, "add_bos_token": False, "add_eos_token": False}
    get_family(family).add_tokenizer_code(root, config)
    write_json(root / "tokenizer_config.json", config | _template_settings(root, config, template))


def _template_settings(root: Path, config: dict[str, Any], template: ChatTemplate | None) -> dict[str, Any]:
    """The recipe's template, or training's unchanged, as a file too: current transformers takes that one first, older ones
    know the setting alone. Templates in a list have no file, which would hide those beside the default one."""
    if template is None:
        return {"chat_template": CHAT_TEMPLATE}
    published = config.get("chat_template")
    if isinstance(published, list) and {"name": "default", "template": template.text} in published:
        return {}
    (root / TEMPLATE_FILE).write_bytes(template.text.encode("utf-8"))
    return {"chat_template": template.text}


def _as_served(content: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that gives a whole conversation the ids of its segments, and adds nothing to it."""
    return content | {
        "pre_tokenizer": _with_role_tags_apart(content.get("pre_tokenizer")),
        "post_processor": _without_template(content.get("post_processor")),
    }


def _with_role_tags_apart(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A byte-level pre-tokenizer that cuts before role tags first. Others stay as they are: SentencePiece's pieces hold no
    line break within, and what puts a prefix before every piece must not get more pieces."""
    members = [] if part is None else part["pretokenizers"] if part["type"] == "Sequence" else [part]
    is_byte_level = any(member["type"] == "ByteLevel" for member in members)
    if not is_byte_level or any(member.get("add_prefix_space") for member in members) or _ROLE_TAGS_APART in members:
        return part
    return {"type": "Sequence", "pretokenizers": [_ROLE_TAGS_APART, *members]}


def _without_template(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A post-processor that puts no bos and no eos around a text."""
    if part is None or part["type"] not in ("Sequence", "ByteLevel"):
        return None
    if part["type"] == "ByteLevel":
        return part
    kept = [member for member in map(_without_template, part["processors"]) if member is not None]
    return {**part, "processors": kept} if kept else None


def _sentencepiece_config(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Settings with which LlamaTokenizer gives sentencepiece's ids (found by trial, see tests)."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    numbers = {"unk_token": model.unk_id(), "bos_token": model.bos_id(), "eos_token": model.eos_id()}
    names = {name: model.id_to_piece(number) for name, number in numbers.items() if number >= 0}
    if model.pad_id() >= 0:
        names["pad_token"] = model.id_to_piece(model.pad_id())
    has_prefix = model.encode("a", out_type=str)[0] != "a"
    return {**TOKENIZER_CONFIG, **names, "add_prefix_space": has_prefix, "split_special_tokens": True}
