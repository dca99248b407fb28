"""Qwen2.5: Llama's layout with biases on queries, keys and values; small ones are tied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.family import Family


def _preset(layers: int, hidden: int, ffn: int, heads: int, groups: int, **others: Any) -> Architecture:
    common = {"norm_epsilon": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 131072, "vocab_size": 152064}
    ids = {"bos_token_id": 151643, "eos_token_id": 151643}
    settings = {"family": "qwen2", "qkv_bias": True, **common, **ids, **others}
    return Architecture.of_layers(layers, hidden, ffn, heads, groups, **settings)


# transformers 5 opens the tokenizer of every Qwen2 model by its own Qwen2Tokenizer, which takes nothing but the
# vocabulary from tokenizer.json. Only a directory that brings a class along is opened by the class that it names: by the
# one brought along where remote code is trusted, by `tokenizer_class` where it is not.
_TOKENIZER_CODE = "tokenization_plain"
_TOKENIZER_CLASS = '''\
"""The tokenizer of this directory as its files say. Written for megatron_huatuo, Apache-2.0."""

from transformers import {base}


class PlainTokenizer({base}):
    """Named by tokenizer_config.json, so that transformers does not take Qwen2Tokenizer instead."""
'''


class Qwen2(Family):
    """Qwen2 and Qwen2.5, as their published config.json files describe them."""

    name = "qwen2"
    model_type = "qwen2"
    hf_class = "Qwen2ForCausalLM"
    presets: ClassVar[dict[str, Architecture]] = {
        "qwen2.5-7b": _preset(28, 3584, 18944, 28, 4),
        # Qwen2.5-14B-Instruct has 1e-6.
        "qwen2.5-14b": _preset(48, 5120, 13824, 40, 8, norm_epsilon=1e-5),
        "qwen2.5-72b": _preset(80, 8192, 29568, 64, 8, norm_epsilon=1e-5),
    }

    def architecture_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Biases are not named by config.json."""
        return {**super().architecture_fields(config, where), "qkv_bias": True}

    def add_tokenizer_code(self, directory: Path, settings: dict[str, Any]) -> None:
        """A three-line class, so that transformers reads the whole of tokenizer.json."""
        code = _TOKENIZER_CLASS.format(base=settings["tokenizer_class"])
        (directory / f"{_TOKENIZER_CODE}.py").write_text(code, encoding="utf-8")
        settings["auto_map"] = {"AutoTokenizer": [None, f"{_TOKENIZER_CODE}.PlainTokenizer"]}
