"""Tokenizer files of a Hugging Face directory: plain transformers gives the ids of our index.

Invariant: the text of a special token stays text (`split_special_tokens`), nothing is added in front or behind, and
the chat template writes what the model was trained on: `<问>：…\\n<答>：…`, turns joined by a line break.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from megatron_huatuo.index.chat_format import ANSWER_TAG, QUESTION_TAG
from megatron_huatuo.index.tokenizer import SentencePieceTokenizer, Tokenizer
from megatron_huatuo.index.train_tokenizer import TOKENIZER_CONFIG
from megatron_huatuo.storage.manifest import read_json, write_json

# A system message joins the first question, as it does when conversations are read for training.
CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='', first=true) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] + '\\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- ('' if ns.first else '\\n') + '" + QUESTION_TAG + "' + ns.system + message['content'] -}}"
    "{%- set ns.first = false -%}{%- set ns.system = '' -%}"
    "{%- else -%}{{- '" + ANSWER_TAG.replace("\n", "\\n") + "' + message['content'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '" + ANSWER_TAG.replace("\n", "\\n") + "' -}}{%- endif -%}"
)


# Settings of the base model that change no id. Its other ones may name remote code, or tokens that SentencePiece's own
# ids do not have.
_KEPT_WITH_SENTENCEPIECE = ("model_max_length", "padding_side", "truncation_side")


def write_tokenizer_files(tokenizer: Tokenizer, directory: str | os.PathLike[str]) -> None:
    """Copy the tokenizer's files into a Hugging Face directory, with the settings that give the index's ids."""
    root = Path(directory)
    settings = tokenizer.files.get("tokenizer_config.json")
    config = read_json(settings) if settings else {}
    if isinstance(tokenizer, SentencePieceTokenizer):
        shutil.copyfile(tokenizer.path, root / "tokenizer.model")
        kept = {key: config[key] for key in _KEPT_WITH_SENTENCEPIECE if key in config}
        config = kept | _sentencepiece_config(tokenizer)
    else:
        for name, path in tokenizer.files.items():
            shutil.copyfile(path, root / name)
        config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        config.pop("auto_map", None)
        config["split_special_tokens"] = True
    write_json(root / "tokenizer_config.json", {**config, "chat_template": CHAT_TEMPLATE})


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
