"""config.json of a Hugging Face model <-> the fields of an Architecture.

Invariant: every key of config.json is either read, known to have no effect on the model's function, or required to
have the one value that is supported. Anything else is refused by name.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture, RopeScaling
from megatron_huatuo.storage.manifest import read_json

_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "baichuan": "baichuan2"}

# Keys that say nothing about the function that the weights compute: names and types, training and generation, the way
# of computing (pretraining_tp), and what old transformers wrote for every model.
_WITHOUT_EFFECT = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path architectures
    attn_implementation auto_map bad_words_ids begin_suppress_tokens chunk_size_feed_forward decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label is_decoder
    is_encoder_decoder label2id length_penalty max_length max_sequence_length max_window_layers min_length
    model_max_length model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores prefix pretraining_tp problem_type remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id sliding_window suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict""".split()  # noqa: SIM905
)
_CHECKED_APART = frozenset({"layer_types", "position_embedding", "rope_parameters", "rope_scaling", "rope_theta"})

_REQUIRED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attention_dropout": (0, None),
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1,),
    "pruned_heads": ({},),
    "use_mrope": (False,),
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

# Baichuan2's config.json does not name its positions. Its sizes do: (hidden_size, num_hidden_layers) of 7B and 13B.
_BAICHUAN2_POSITIONS = {(4096, 32): "rope", (5120, 40): "alibi"}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_positive(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and 0 < value < float("inf")


def _is_token(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and len(value) > 0 and all(map(_is_whole, value)))


# What a value that is there, and not null, must be. transformers itself would go on with another one.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (*_SIZES, "head_dim", "vocab_size", "max_position_embeddings"), (_is_size, "a whole number above 0")
    ),
    **dict.fromkeys(("rms_norm_eps", "initializer_range", "rope_theta"), (_is_positive, "a number above 0")),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), (_is_token, "a token id, or a list of them")),
    "pad_token_id": (_is_whole, "a token id"),
    "tie_word_embeddings": (lambda value: isinstance(value, bool), "true or false"),
    "layer_types": (lambda value: isinstance(value, list), "a list"),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), (lambda value: isinstance(value, dict), "an object")),
}


def load_architecture(hf_directory: str | os.PathLike[str]) -> Architecture:
    """Architecture of a Hugging Face directory, from its config.json alone.

    Raises: ConfigError when there is none, or naming the setting that is not supported; IntegrityError when it is torn.
    """
    path = Path(hf_directory) / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"no Hugging Face model: {hf_directory} is no local directory with a config.json. Check the path; a model of "
            "the Hub is downloaded first: hf download ORGANISATION/NAME --local-dir DIR."
        )
    return Architecture(**architecture_fields(read_json(path), str(path)))


def architecture_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `model.architecture.Architecture` from the content of a config.json.

    where: the file's name, for messages.
    Raises: ConfigError naming the first key that is missing, unknown or has a value that is not supported.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"wrong configuration: got a {type(config).__name__}, need a JSON object ({where}).")
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
    fields["alibi"] = _has_alibi(config, family, where)
    fields["rope_theta"], fields["rope_scaling"] = (None, None) if fields["alibi"] else _rotary(config, where)
    return fields


def _family(config: Mapping[str, Any], where: str) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _MODEL_TYPES:
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
        else:
            _is_given(key, value, where)
    others = [kind for kind in config.get("layer_types") or () if kind != "full_attention"]
    if others:
        raise ConfigError(f"unsupported setting 'layer_types': got {others[0]!r}, need 'full_attention' ({where}).")


def _is_given(key: str, value: Any, where: str) -> bool:
    """Whether the setting has a value. Raises: ConfigError when it is of a wrong kind."""
    if value is None:
        return False
    fits, needed = _KINDS.get(key, (lambda _: True, ""))
    if not fits(value):
        raise ConfigError(f"wrong setting {key!r}: got {value!r}, need {needed} ({where}).")
    return True


def _has_alibi(config: Mapping[str, Any], family: str, where: str) -> bool:
    named = config.get("position_embedding")
    if family != "baichuan2":
        allowed: tuple[str | None, ...] = (None, "rope")
    else:
        named = named or _BAICHUAN2_POSITIONS.get((config["hidden_size"], config["num_hidden_layers"]))
        allowed = ("alibi", "rope")
    if named not in allowed:
        needed = " or ".join(repr(name) for name in allowed if name)
        raise ConfigError(f"wrong setting 'position_embedding': got {named!r}, need {needed} ({where}).")
    return named == "alibi"


def _rotary(config: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """(base, scaling) of rotary embeddings, in the layout of transformers 5 (`rope_parameters`) or an older one."""
    settings = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    bases = [each.get("rope_theta") for each in (config, *settings.values())]
    thetas = list(dict.fromkeys(base for base in bases if _is_given("rope_theta", base, where)))
    scalings = list(dict.fromkeys(_rope_scaling(each, key, where) for key, each in settings.items()))
    if len(thetas) > 1 or len(scalings) > 1:
        raise ConfigError(
            f"rotary embeddings are described twice, and differently: {settings | {'rope_theta': bases[0]}}"
            f" ({where}). Keep one of them."
        )
    return float(thetas[0]) if thetas else 1e4, scalings[0] if scalings else None


def _rope_scaling(settings: Mapping[str, Any], key: str, where: str) -> RopeScaling | None:
    """None for plain rotary embeddings, in each of the ways in which they are said."""
    kind = settings.get("rope_type", settings.get("type", "default"))
    rest = {name: value for name, value in settings.items() if name not in ("rope_type", "type", "rope_theta")}
    if rest.get("partial_rotary_factor") == 1:
        del rest["partial_rotary_factor"]
    if (kind == "default" and not rest) or (kind == "linear" and rest == {"factor": 1}):
        return None
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    if kind == "llama3" and sorted(rest) == sorted(names) and all(map(_is_positive, rest.values())):
        scaling = RopeScaling(**rest)
        if scaling.low_freq_factor < scaling.high_freq_factor:
            return scaling
    raise ConfigError(
        f"unsupported setting {key!r}: got {settings}, need plain rotary embeddings (rope_type 'default'), or 'llama3' "
        f"with {', '.join(names)} ({where})."
    )


def config_json(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """Content of config.json for an architecture, as current transformers reads it.

    dtype: "bfloat16", "float16" or "float32", the type of the weights beside it.
    """
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "baichuan2": "BaichuanForCausalLM"}
    model_types = {family: model_type for model_type, family in _MODEL_TYPES.items()}
    content: dict[str, Any] = {
        "architectures": [names[architecture.family]],
        "model_type": model_types[architecture.family],
        "dtype": dtype,
        "torch_dtype": dtype,  # what `dtype` was called before transformers 5
        "hidden_act": "silu",
        "use_cache": True,
    }
    values = {field: getattr(architecture, field) for field in (*_FIELDS.values(), *_OPTIONAL_FIELDS.values())}
    content |= {key: values[field] for key, field in (_FIELDS | _OPTIONAL_FIELDS).items()}
    if architecture.rope_theta is not None:
        scaling = architecture.rope_scaling
        kind = {"rope_type": "llama3", **dataclasses.asdict(scaling)} if scaling else {"rope_type": "default"}
        content["rope_parameters"] = {"rope_theta": architecture.rope_theta, **kind}
        # Where servers with an older transformers look for them.
        content |= {"rope_theta": architecture.rope_theta, "rope_scaling": kind if scaling else None}
    if architecture.family == "llama":
        content |= {"attention_bias": False, "mlp_bias": False}
    if architecture.family == "baichuan2":
        content["position_embedding"] = "alibi" if architecture.alibi else "rope"
    return content
