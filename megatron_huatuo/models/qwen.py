"""Qwen2.5 and Qwen3, dense: Llama's layout; Qwen2.5 with biases on queries, keys and values, Qwen3 with norms of queries and
keys and a head_dim of its own. Small ones are tied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.family import Family


def _qwen2(layers: int, hidden: int, ffn: int, heads: int, groups: int, **others: Any) -> Architecture:
    common = {"norm_epsilon": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 131072, "vocab_size": 152064}
    ids = {"bos_token_id": 151643, "eos_token_id": 151643}
    settings = {"family": "qwen2", "qkv_bias": True, **common, **ids, **others}
    return Architecture.of_layers(layers, hidden, ffn, heads, groups, **settings)


def _qwen3(layers: int, hidden: int, ffn: int, heads: int, *, tied: bool = False, **others: Any) -> Architecture:
    settings = {"family": "qwen3", "qk_norm": True, "head_dim": 128, "tied_embeddings": tied, "vocab_size": 151936}
    common = {"norm_epsilon": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
    ids = {"bos_token_id": 151643, "eos_token_id": 151643}
    return Architecture.of_layers(layers, hidden, ffn, heads, 8, **{**settings, **common, **ids, **others})


# transformers 5 opens the tokenizer of every Qwen2 and Qwen3 model by its own Qwen2Tokenizer, which takes nothing but the
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
        "qwen2.5-7b": _qwen2(28, 3584, 18944, 28, 4),
        # Qwen2.5-14B-Instruct has 1e-6.
        "qwen2.5-14b": _qwen2(48, 5120, 13824, 40, 8, norm_epsilon=1e-5),
        "qwen2.5-72b": _qwen2(80, 8192, 29568, 64, 8, norm_epsilon=1e-5),
    }

    def architecture_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Biases are not named by config.json."""
        return {**super().architecture_fields(config, where), "qkv_bias": True}

    def add_tokenizer_code(self, directory: Path, settings: dict[str, Any]) -> None:
        """A three-line class, so that transformers reads the whole of tokenizer.json."""
        code = _TOKENIZER_CLASS.format(base=settings["tokenizer_class"])
        (directory / f"{_TOKENIZER_CODE}.py").write_text(code, encoding="utf-8")
        settings["auto_map"] = {"AutoTokenizer": [None, f"{_TOKENIZER_CODE}.PlainTokenizer"]}


class Qwen3(Qwen2):
    """Qwen3, dense, base and instruct; base models allow 32768 positions, the others 40960."""

    name = "qwen3"
    model_type = "qwen3"
    hf_class = "Qwen3ForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {"head_dim": 128}
    presets: ClassVar[dict[str, Architecture]] = {
        "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, tied=True),
        "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, tied=True),
        "qwen3-4b": _qwen3(36, 2560, 9728, 32, tied=True),
        "qwen3-8b": _qwen3(36, 4096, 12288, 32),
        "qwen3-14b": _qwen3(40, 5120, 17408, 40),
        # There is no base model of this size: the ids and positions of the instruct model.
        "qwen3-32b": _qwen3(64, 5120, 25600, 64, eos_token_id=151645, max_position_embeddings=40960),
    }

    def architecture_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Norms of queries and keys are not named by config.json."""
        return {**Family.architecture_fields(self, config, where), "qk_norm": True}

    def config_json(self, architecture: Architecture) -> dict[str, Any]:
        """Says that there are no biases."""
        return {**super().config_json(architecture), "attention_bias": False}
