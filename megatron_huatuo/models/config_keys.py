"""What the keys of config.json mean in every family: which are read, which say nothing, which values are needed.

Invariant: every key of config.json is either read, known to have no effect on the model's function, or required to
have the one value that is supported. Anything else is refused by name.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture, RopeScaling

# Keys that say nothing about the function that the weights compute: names and types, training and generation, the way
# of computing (pretraining_tp), and what old transformers wrote for every model.
WITHOUT_EFFECT = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path architectures
    attn_implementation auto_map bad_words_ids begin_suppress_tokens chunk_size_feed_forward decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label is_decoder
    is_encoder_decoder is_llama_config label2id length_penalty max_length max_sequence_length max_window_layers min_length
    model_max_length model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores prefix pretraining_tp problem_type remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id sliding_window suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version
    typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict""".split()  # noqa: SIM905
)
CHECKED_APART = frozenset({"layer_types", "position_embedding", "rope_parameters", "rope_scaling", "rope_theta"})

REQUIRED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attention_dropout": (0, None),
    "compression_config": (None,),
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1,),
    "pruned_heads": ({},),
    "quantization": (None,),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
    "z_loss_weight": (0,),
}
# As transformers, llm-compressor and MLX name it.
_QUANTISED = ("compression_config", "quantization", "quantization_config")

FIELDS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_epsilon",
}
OPTIONAL_FIELDS = {
    "num_key_value_heads": "num_query_groups",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "tie_word_embeddings": "tied_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_size(value: Any) -> bool:
    return _is_whole(value) and value > 0


def is_positive(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and 0 < value < float("inf")


def _is_token(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and len(value) > 0 and all(map(_is_whole, value)))


# What a value that is there, and not null, must be. transformers itself would go on with another one.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (*_SIZES, "head_dim", "vocab_size", "max_position_embeddings"), (is_size, "a whole number above 0")
    ),
    **dict.fromkeys(("rms_norm_eps", "initializer_range", "rope_theta"), (is_positive, "a number above 0")),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), (_is_token, "a token id, or a list of them")),
    "pad_token_id": (_is_whole, "a token id"),
    "tie_word_embeddings": (lambda value: isinstance(value, bool), "true or false"),
    "layer_types": (lambda value: isinstance(value, list), "a list"),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), (lambda value: isinstance(value, dict), "an object")),
}


def check_keys(
    config: Mapping[str, Any],
    where: str,
    own_keys: Iterable[str] = (),
    own_values: Mapping[str, tuple[Any, ...]] | None = None,
    layer_types: Iterable[str] = ("full_attention",),
    ignored: Iterable[str] = (),
) -> None:
    """Refuse what is not known. Keys that begin with "_" are private notes of the tools that wrote them.

    own_keys: read by the family itself. own_values: the values that the family needs, in place of the common ones. layer_types: those
    that the family knows.
    ignored: keys that the user knows to be harmless.
    Raises: ConfigError naming the first key that is unknown, or whose value is of a wrong kind or not supported.
    """
    required = {**REQUIRED_VALUES, **(own_values or {})}
    known = WITHOUT_EFFECT | CHECKED_APART | FIELDS.keys() | OPTIONAL_FIELDS.keys() | set(own_keys)
    for key, value in config.items():
        if key.startswith("_") or key in ignored:
            continue
        if key in own_keys or (key in known and key not in required):
            is_given(key, value, where)
        elif key in required:
            if value not in required[key]:
                needed = " or ".join(map(repr, required[key]))
                got = textwrap.shorten(repr(value), 100, placeholder=" …")
                fix = (
                    " Its weights are quantised: take the model that they were made from." if key in _QUANTISED else ""
                )
                raise ConfigError(f"unsupported setting {key!r}: got {got}, need {needed} ({where}).{fix}")
        else:
            raise ConfigError(
                f"unknown setting {key!r} = {value!r} in {where}: it may change the model. "
                f"If it has no effect on the model's function, import with --ignore-config-key {key}."
            )
    for kind in config.get("layer_types") or ():
        if kind not in layer_types:
            needed = " or ".join(map(repr, layer_types))
            raise ConfigError(f"unsupported setting 'layer_types': got {kind!r}, need {needed} ({where}).")


def is_given(key: str, value: Any, where: str) -> bool:
    """Whether the setting has a value. Raises: ConfigError when it is of a wrong kind."""
    if value is None:
        return False
    fits, needed = _KINDS.get(key, (lambda _: True, ""))
    if not fits(value):
        raise ConfigError(f"wrong setting {key!r}: got {value!r}, need {needed} ({where}).")
    return True


def rotary_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Base, scaling and factor of rotary embeddings, in the layout of transformers 5 (`rope_parameters`) or an older one."""
    settings = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    bases = [each.get("rope_theta") for each in (config, *settings.values())]
    thetas = list(dict.fromkeys(base for base in bases if is_given("rope_theta", base, where)))
    scalings = list(dict.fromkeys(_rope_scaling(each, key, where) for key, each in settings.items()))
    if len(thetas) > 1 or len(scalings) > 1:
        raise ConfigError(
            f"rotary embeddings are described twice, and differently: {settings | {'rope_theta': bases[0]}}"
            f" ({where}). Keep one of them."
        )
    scaling, factor = scalings[0] if scalings else (None, 1.0)
    return {"rope_theta": float(thetas[0]) if thetas else 1e4, "rope_scaling": scaling, "rope_factor": factor}


def rotary_json(architecture: Architecture) -> dict[str, Any]:
    """Rotary embeddings as transformers 5 reads them, and as a server with an older one does."""
    if architecture.rope_theta is None:
        return {}
    kind: dict[str, Any] = {"rope_type": "default"}
    if architecture.rope_scaling is not None:
        kind = {"rope_type": "llama3", **dataclasses.asdict(architecture.rope_scaling)}
    elif architecture.rope_factor != 1:
        kind = {"rope_type": "linear", "factor": architecture.rope_factor}
    return {
        "rope_parameters": {"rope_theta": architecture.rope_theta, **kind},
        "rope_theta": architecture.rope_theta,
        "rope_scaling": None if kind["rope_type"] == "default" else kind,
    }


def _rope_scaling(settings: Mapping[str, Any], key: str, where: str) -> tuple[RopeScaling | None, float]:
    """(Llama 3.1's scaling, linear factor); (None, 1) for plain ones, in each of the ways in which they are said."""
    kind = settings.get("rope_type", settings.get("type", "default"))
    rest = {name: value for name, value in settings.items() if name not in ("rope_type", "type", "rope_theta")}
    if rest.get("partial_rotary_factor") == 1:
        del rest["partial_rotary_factor"]
    if kind == "default" and not rest:
        return None, 1.0
    if kind == "linear" and rest.keys() == {"factor"} and is_positive(rest["factor"]):
        return None, float(rest["factor"])
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    if kind == "llama3" and sorted(rest) == sorted(names) and all(map(is_positive, rest.values())):
        scaling = RopeScaling(**rest)
        if scaling.low_freq_factor < scaling.high_freq_factor:
            return scaling, 1.0
    raise ConfigError(
        f"unsupported setting {key!r}: got {settings}, need plain rotary embeddings (rope_type 'default'), 'linear' "
        f"with factor, or 'llama3' with {', '.join(names)} ({where})."
    )
