"""Mistral 7B, its larger dense siblings, and what is published in their layout: Llama's, with a window in the first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.config_keys import is_size
from megatron_huatuo.models.family import Family


def _preset(layers: int, hidden: int, ffn: int, heads: int, **others: Any) -> Architecture:
    common = {"norm_epsilon": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768, "vocab_size": 32768}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return Architecture.of_layers(layers, hidden, ffn, heads, 8, family="mistral", **{**common, **ids, **others})


class Mistral(Family):
    """Mistral 7B v0.1 to v0.3, Nemo 12B and Small 24B. Where there is a window, every layer has it."""

    name = "mistral"
    model_type = "mistral"
    hf_class = "MistralForCausalLM"
    own_keys = frozenset({"sliding_window"})
    defaults: ClassVar[dict[str, Any]] = {"num_key_value_heads": 8, "sliding_window": 4096}
    presets: ClassVar[dict[str, Architecture]] = {
        "mistral-7b-v0.1": _preset(32, 4096, 14336, 32, vocab_size=32000, rope_theta=1e4, sliding_window=4096),
        "mistral-7b-v0.3": _preset(32, 4096, 14336, 32),
        "mistral-nemo-12b": _preset(
            40, 5120, 14336, 32, head_dim=128, vocab_size=131072, max_position_embeddings=128000
        ),
        "mistral-small-24b": _preset(40, 5120, 32768, 32, head_dim=128, vocab_size=131072, rope_theta=1e8),
    }

    def architecture_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The window; none where `layer_types`, by which transformers reads it as Ministral, names global layers alone."""
        window = config["sliding_window"]
        if window is not None and not is_size(window):
            raise ConfigError(
                f"wrong setting 'sliding_window': got {window!r}, need a whole number above 0, or null ({where})."
            )
        window = None if config.get("layer_types") else window
        return {**super().architecture_fields(config, where), "sliding_window": window}

    def config_json(self, architecture: Architecture) -> dict[str, Any]:
        """The window, which transformers would take for 4096 where nothing is said."""
        return {**super().config_json(architecture), "sliding_window": architecture.sliding_window}

    def add_tokenizer_code(self, directory: Path, settings: dict[str, Any]) -> None:
        """Says that tokenizer.json stays as it is, which transformers 5 would advise against, or change where told to."""
        settings["fix_mistral_regex"] = False
