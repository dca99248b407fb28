"""Baichuan2: one packed projection, output rows of unit length, rotary positions (7B) or ALiBi (13B).

transformers has no class for it. An export brings this package's `modeling_baichuan.py`, and a directory that holds this
very file, known by its hash, is opened by the class of the package: what lies in a model directory is never run because
of its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.family import Family
from megatron_huatuo.models.weight_rules import WeightRule, layer_rules

# config.json does not name its positions. Its sizes do: (hidden_size, num_hidden_layers) of 7B and 13B.
_POSITIONS = {(4096, 32): "rope", (5120, 40): "alibi"}


def _preset(layers: int, hidden: int, ffn: int, heads: int, **positions: Any) -> Architecture:
    common: dict[str, Any] = {
        "norm_epsilon": 1e-6,
        "max_position_embeddings": 4096,
        "vocab_size": 125696,
        "norm_head": True,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return Architecture.of_layers(layers, hidden, ffn, heads, family="baichuan2", **common, **ids, **positions)


class Baichuan2(Family):
    """Baichuan2-7B and -13B, base and chat."""

    name = "baichuan2"
    model_type = "baichuan"
    hf_class = "BaichuanForCausalLM"
    model_code = Path(__file__).with_name("modeling_baichuan.py")
    presets: ClassVar[dict[str, Architecture]] = {
        "baichuan2-7b": _preset(32, 4096, 11008, 32, rope_theta=1e4),
        "baichuan2-13b": _preset(40, 5120, 13696, 40, rope_theta=None, alibi=True),
    }

    def architecture_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """NormHead, and positions by name or by size. Raises: ConfigError for Baichuan 1 and for unknown positions."""
        if config.get("vocab_size") == 64000:
            raise ConfigError(f"unsupported 'vocab_size': got 64000, which is Baichuan 1; need Baichuan2 ({where}).")
        named = config.get("position_embedding") or _POSITIONS.get((config["hidden_size"], config["num_hidden_layers"]))
        if named not in ("alibi", "rope"):
            raise ConfigError(f"wrong setting 'position_embedding': got {named!r}, need 'alibi' or 'rope' ({where}).")
        return {"norm_head": True, "alibi": named == "alibi"}

    def config_json(self, architecture: Architecture) -> dict[str, Any]:
        """Names the positions, which the published files leave to be guessed."""
        position = "alibi" if architecture.alibi else "rope"
        return {**super().config_json(architecture), "position_embedding": position}

    def layer_rules(self, architecture: Architecture) -> list[WeightRule]:
        """W_pack holds queries, keys and values."""
        return layer_rules(architecture, packed_projection="self_attn.W_pack")

    def transformers_classes(self) -> tuple[Any, Any]:
        """The package's own. Code that lies in the directory is not run."""
        from megatron_huatuo.models.modeling_baichuan import BaichuanConfig, BaichuanForCausalLM

        return BaichuanConfig, BaichuanForCausalLM

    def as_llama(self, architecture: Architecture) -> Architecture | None:
        """With rotary positions: W_pack becomes three projections, and the head is normalised once."""
        return None if architecture.alibi else dataclasses.replace(architecture, family="llama", norm_head=False)
