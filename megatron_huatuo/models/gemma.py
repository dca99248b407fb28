"""Gemma 3, text: local and global layers in turn, norms on both sides, scaled embeddings, tied.

A directory of text and pictures (4B and larger, MedGemma) is read for its text part: `text_config`, and the weights of the
language model. An export is a text model, `gemma3_text`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.config_keys import is_size, rotary_fields, rotary_json
from megatron_huatuo.models.family import Family

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_EVERY = 6
_THETAS = {_GLOBAL: 1e6, _LOCAL: 1e4}
# What all sizes share.
_FIXED: dict[str, Any] = {
    "activation": "gelu_tanh",
    "qk_norm": True,
    "zero_centered_norms": True,
    "post_norms": True,
    "scaled_embedding": True,
}


def _preset(layers: int, hidden: int, ffn: int, heads: int, groups: int, **others: Any) -> Architecture:
    common: dict[str, Any] = {
        **_FIXED,
        "head_dim": 256,
        "norm_epsilon": 1e-6,
        "rope_theta": 1e6,
        "rope_factor": 8.0,
        "local_rope_theta": 1e4,
        "global_every": _EVERY,
        "sliding_window": 1024,
        "query_pre_attn_scalar": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "tied_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return Architecture.of_layers(layers, hidden, ffn, heads, groups, family="gemma3", **{**common, **others})


class Gemma3(Family):
    """Gemma 3 1B to 27B and the text part of MedGemma."""

    name = "gemma3"
    model_type = "gemma3_text"
    hf_class = "Gemma3ForCausalLM"
    wrapper_type = "gemma3"
    wrapper_keys = frozenset(
        """architectures boi_token_id boi_token_index eoi_token_id eoi_token_index image_token_id image_token_index
        mm_tokens_per_image model_type vision_config""".split()  # noqa: SIM905
    )
    renamed_weights: ClassVar[dict[str, str]] = {
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
    }
    left_out_weights = (
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    )
    # Gemma3TextConfig's; the files of 4B and larger name only what differs.
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    }
    own_keys = frozenset(
        """cache_implementation query_pre_attn_scalar rope_local_base_freq sliding_window sliding_window_pattern""".split()  # noqa: SIM905
    )
    own_values: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "hidden_act": ("gelu_pytorch_tanh",),
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (False, None),
    }
    layer_types = (_GLOBAL, _LOCAL)
    presets: ClassVar[dict[str, Architecture]] = {
        "gemma-3-1b": _preset(
            26, 1152, 6912, 4, 1, vocab_size=262144, rope_factor=1.0, sliding_window=512, max_position_embeddings=32768
        ),
        "gemma-3-4b": _preset(34, 2560, 10240, 8, 4),
        "gemma-3-12b": _preset(48, 3840, 15360, 16, 8),
        "gemma-3-27b": _preset(62, 5376, 21504, 32, 16, head_dim=128, query_pre_attn_scalar=168),
    }

    def architecture_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Windows, the scale of attention, and what all Gemma 3 models share."""
        for key in ("query_pre_attn_scalar", "sliding_window"):
            if not is_size(config[key]):
                raise ConfigError(f"wrong setting {key!r}: got {config[key]!r}, need a whole number above 0 ({where}).")
        return {
            **super().architecture_fields(config, where),
            **_FIXED,
            "query_pre_attn_scalar": config["query_pre_attn_scalar"],
            "sliding_window": config["sliding_window"],
            "global_every": _global_every(config, where),
        }

    def rotary_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Two bases: as `rope_parameters` of each kind of layer (transformers 5), or as single keys."""
        kinds = config.get("rope_parameters") or {}
        if unknown := sorted(kinds.keys() - _THETAS.keys()):
            raise ConfigError(
                f"unsupported setting 'rope_parameters': got {unknown[0]!r}, need {_GLOBAL} and {_LOCAL} ({where})."
            )
        named = {_GLOBAL: config.get("rope_theta"), _LOCAL: config.get("rope_local_base_freq")}
        scalings = {_GLOBAL: config.get("rope_scaling"), _LOCAL: None}
        found = {}
        for kind, theta in _THETAS.items():
            given = {"rope_theta": named[kind], "rope_parameters": kinds.get(kind), "rope_scaling": scalings[kind]}
            is_silent = named[kind] is None and not (kinds.get(kind) or {}).get("rope_theta")
            found[kind] = rotary_fields({**given, "rope_theta": theta} if is_silent else given, where)
        local = found[_LOCAL]
        if local["rope_scaling"] is not None or local["rope_factor"] != 1:
            raise ConfigError(f"unsupported setting 'rope_parameters': got scaled {_LOCAL}, need plain ({where}).")
        return {**found[_GLOBAL], "local_rope_theta": local["rope_theta"]}

    def rotary_json(self, architecture: Architecture) -> dict[str, Any]:
        """Both ways of saying it."""
        common = rotary_json(architecture)
        local = {"rope_type": "default", "rope_theta": architecture.local_rope_theta}
        kinds = {_GLOBAL: common["rope_parameters"], _LOCAL: local}
        return {**common, "rope_parameters": kinds, "rope_local_base_freq": architecture.local_rope_theta}

    def config_json(self, architecture: Architecture) -> dict[str, Any]:
        """As the 1B's file has it, and the kind of every layer."""
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": architecture.query_pre_attn_scalar,
            "sliding_window": architecture.sliding_window,
            "sliding_window_pattern": architecture.global_every,
            "layer_types": [_GLOBAL if window is None else _LOCAL for window in architecture.windows()],
        }


def _global_every(config: Mapping[str, Any], where: str) -> int:
    """Every how many layers one is global: named, or read off the list of kinds."""
    pattern, kinds, layers = (
        config.get("sliding_window_pattern"),
        config.get("layer_types"),
        config["num_hidden_layers"],
    )
    if pattern is not None and not is_size(pattern):
        raise ConfigError(
            f"wrong setting 'sliding_window_pattern': got {pattern!r}, need a whole number above 0 ({where})."
        )
    if kinds is None:
        return pattern or _EVERY
    for every in [pattern] if pattern else [_EVERY, *range(1, layers + 1)]:
        if kinds == [_LOCAL if number % every else _GLOBAL for number in range(1, layers + 1)]:
            return int(every)
    raise ConfigError(
        f"unsupported setting 'layer_types': got {kinds}, need {layers} kinds, every so many one {_GLOBAL} and the others "
        f"{_LOCAL}{f', as sliding_window_pattern = {pattern} says' if pattern else ''} ({where})."
    )
