"""config.json of a Hugging Face model <-> the fields of an Architecture.

Invariant: every key of config.json is either read, known to have no effect on the model's function, or required to
have the one value that is supported. Anything else is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.model.architecture import Architecture
from megatron_huatuo.storage.manifest import read_json

_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "baichuan": "baichuan2"}

# Keys that say nothing about the function that the weights compute.
_WITHOUT_EFFECT = frozenset(
    """_attn_implementation _commit_hash _from_model_config _name_or_path architectures auto_map chunk_size_feed_forward
    dtype finetuning_task gradient_checkpointing id2label is_decoder is_encoder_decoder label2id max_sequence_length
    max_window_layers model_max_length model_type output_attentions output_hidden_states problem_type return_dict
    sep_token_id sliding_window tokenizer_class torch_dtype transformers_version unk_token_id use_cache
    use_return_dict""".split()  # noqa: SIM905
)
_CHECKED_APART = frozenset({"layer_types", "position_embedding", "rope_parameters", "rope_scaling", "rope_theta"})

_REQUIRED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, None),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),
    "use_sliding_window": (False,),
    "z_loss_weight": (0,),
}

_FIELDS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_epsilon",
}
_OPTIONAL_FIELDS = {
    "num_key_value_heads": "num_query_groups",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "tie_word_embeddings": "tied_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}


def load_architecture(hf_directory: str | os.PathLike[str]) -> Architecture:
    """Architecture of a Hugging Face directory, from its config.json alone.

    Raises: IntegrityError when config.json is missing or torn; ConfigError naming the setting that is not supported.
    """
    path = Path(hf_directory) / "config.json"
    return Architecture(**architecture_fields(read_json(path), str(path)))


def architecture_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `model.architecture.Architecture` from the content of a config.json.

    where: the file's name, for messages.
    Raises: ConfigError naming the first key that is missing, unknown or has a value that is not supported.
    """
    family = _family(config, where)
    _check_keys(config, where)
    fields: dict[str, Any] = {"family": family}
    for key, field in _FIELDS.items():
        if config.get(key) is None:
            raise ConfigError(f"missing setting {key!r} in {where}.")
        fields[field] = config[key]
    for key, field in _OPTIONAL_FIELDS.items():
        if config.get(key) is not None:
            fields[field] = config[key]
    for key in ("eos_token_id", "bos_token_id"):
        if isinstance(fields.get(key), list):  # Llama 3 instruct models name several ends; the first ends a document
            fields[key] = fields[key][0]
    fields.setdefault("num_query_groups", fields["num_attention_heads"])
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    fields.setdefault("max_position_embeddings", config.get("model_max_length", 2048))
    fields["qkv_bias"] = family == "qwen2"
    fields["norm_head"] = family == "baichuan2"
    fields["alibi"] = family == "baichuan2" and _has_alibi(config)
    fields["rope_theta"] = None if fields["alibi"] else _rope_theta(config, where)
    return fields


def _family(config: Mapping[str, Any], where: str) -> str:
    model_type = config.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ConfigError(
            f"unsupported 'model_type': got {model_type!r}, need one of {', '.join(_MODEL_TYPES)} ({where})."
        )
    if model_type == "baichuan" and config.get("vocab_size") == 64000:
        raise ConfigError(f"unsupported 'vocab_size': got 64000, which is Baichuan 1; need Baichuan2 ({where}).")
    return _MODEL_TYPES[model_type]


def _check_keys(config: Mapping[str, Any], where: str) -> None:
    known = _WITHOUT_EFFECT | _CHECKED_APART | _FIELDS.keys() | _OPTIONAL_FIELDS.keys()
    for key, value in config.items():
        if key in _REQUIRED_VALUES:
            if value not in _REQUIRED_VALUES[key]:
                needed = " or ".join(map(repr, _REQUIRED_VALUES[key]))
                raise ConfigError(f"unsupported setting {key!r}: got {value!r}, need {needed} ({where}).")
        elif key not in known:
            raise ConfigError(
                f"unknown setting {key!r} = {value!r} in {where}: it may change the model. "
                "Remove it if it has no effect on the model's function."
            )
    layer_types = set(config.get("layer_types") or ()) - {"full_attention"}
    if layer_types:
        raise ConfigError(
            f"unsupported setting 'layer_types': got {sorted(layer_types)}, need 'full_attention' ({where})."
        )


def _has_alibi(config: Mapping[str, Any]) -> bool:
    """Baichuan2 says it nowhere: 13B (ALiBi) has no max_position_embeddings, 7B has. Our own exports name it."""
    if config.get("position_embedding") is not None:
        return config["position_embedding"] == "alibi"
    return config.get("max_position_embeddings") is None


def _rope_theta(config: Mapping[str, Any], where: str) -> float:
    """Base of rotary embeddings, in the layout of transformers 5 (`rope_parameters`) or an older one."""
    parameters = dict(config.get("rope_parameters") or {})
    scaling = dict(config.get("rope_scaling") or {})
    for key, settings in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        kind = settings.get("rope_type", settings.get("type", "default"))
        others = sorted(set(settings) - {"rope_type", "type", "rope_theta"})
        if kind != "default" or others:
            raise ConfigError(
                f"unsupported setting {key!r}: got {settings}, need plain rotary embeddings (rope_type 'default') "
                f"({where})."
            )
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 1e4)


def config_json(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """Content of config.json for an architecture, as current transformers reads it.

    dtype: "bfloat16" or "float32", the type of the weights beside it.
    """
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "baichuan2": "BaichuanForCausalLM"}
    model_types = {family: model_type for model_type, family in _MODEL_TYPES.items()}
    content: dict[str, Any] = {
        "architectures": [names[architecture.family]],
        "model_type": model_types[architecture.family],
        "dtype": dtype,
        "hidden_act": "silu",
        "use_cache": True,
    }
    values = {field: getattr(architecture, field) for field in (*_FIELDS.values(), *_OPTIONAL_FIELDS.values())}
    content |= {key: values[field] for key, field in (_FIELDS | _OPTIONAL_FIELDS).items()}
    if architecture.rope_theta is not None:
        content["rope_parameters"] = {"rope_theta": architecture.rope_theta, "rope_type": "default"}
        content["rope_theta"] = architecture.rope_theta  # where servers with an older transformers look for it
    if architecture.family == "llama":
        content |= {"attention_bias": False, "mlp_bias": False}
    if architecture.family == "baichuan2":
        content["position_embedding"] = "alibi" if architecture.alibi else "rope"
    return content
