"""config.json of a Hugging Face model <-> an Architecture: what all families share. `config_keys.py` has the rules."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.config_keys import FIELDS, OPTIONAL_FIELDS, check_keys
from megatron_huatuo.models.families import family_of_model_type, get_family
from megatron_huatuo.storage.manifest import read_json


def load_architecture(hf_directory: str | os.PathLike[str], ignored_keys: Collection[str] = ()) -> Architecture:
    """Architecture of a Hugging Face directory, from its config.json alone.

    ignored_keys: of config.json, which the user knows to be harmless.
    Raises: ConfigError when there is none, when the directory holds an adapter, or naming the setting that is not supported;
        IntegrityError when it is torn.
    """
    path, adapter = Path(hf_directory) / "config.json", Path(hf_directory) / "adapter_config.json"
    if adapter.is_file():  # transformers would load the model that it names, and apply it
        raise ConfigError(
            f"wrong model: got an adapter ({adapter}), need a whole model. Merge it into its base model "
            "(merge_and_unload of peft), save the result and name that directory."
        )
    if not path.is_file():
        raise ConfigError(
            f"no Hugging Face model: {hf_directory} is not a local directory with a config.json. Check the path; a model of "
            "the Hub is downloaded first: hf download ORGANISATION/NAME --local-dir DIR."
        )
    return Architecture(**architecture_fields(read_json(path), str(path), ignored_keys))


def architecture_fields(config: Mapping[str, Any], where: str, ignored_keys: Collection[str] = ()) -> dict[str, Any]:
    """Fields of an Architecture from the content of a config.json.

    where: the file's name, for messages.
    Raises: ConfigError naming the first key that is missing, unknown or has a value that is not supported.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"wrong configuration: got a {type(config).__name__}, need a JSON object ({where}).")
    family = family_of_model_type(config.get("model_type"), where)
    config = {**family.defaults, **family.text_config(config, where)}
    check_keys(config, where, family.own_keys, family.own_values, family.layer_types, ignored_keys)
    fields: dict[str, Any] = {"family": family.name}
    for key, field in FIELDS.items():
        if config.get(key) is None:
            raise ConfigError(f"missing setting {key!r} in {where}.")
        fields[field] = config[key]
    for key, field in OPTIONAL_FIELDS.items():
        if config.get(key) is not None:
            fields[field] = config[key]
    for key in ("eos_token_id", "bos_token_id"):
        if isinstance(fields.get(key), list):  # Llama 3 instruct models name several ends; the first ends a document
            fields[key] = fields[key][0]
    pad, rows = fields.get("pad_token_id", 0), fields["vocab_size"]
    if pad >= rows:  # transformers cannot build such a model
        raise ConfigError(f"wrong setting 'pad_token_id': got {pad}, need one below vocab_size = {rows} ({where}).")
    if pad < 0:  # LLaMA 1's way of having none
        del fields["pad_token_id"]
    fields.setdefault("num_query_groups", fields["num_attention_heads"])
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    fields.setdefault("max_position_embeddings", config.get("model_max_length", 2048))
    fields |= family.architecture_fields(config, where)
    return fields | ({"rope_theta": None} if fields["alibi"] else family.rotary_fields(config, where))


def config_json(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """Content of config.json for an architecture, as current transformers reads it.

    dtype: "bfloat16", "float16" or "float32", the type of the weights beside it.
    """
    family = get_family(architecture.family)
    content: dict[str, Any] = {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,  # what `dtype` was called before transformers 5
        "use_cache": True,
    }
    values = {field: getattr(architecture, field) for field in (*FIELDS.values(), *OPTIONAL_FIELDS.values())}
    content |= {key: values[field] for key, field in (FIELDS | OPTIONAL_FIELDS).items()}
    return content | family.rotary_json(architecture) | family.config_json(architecture)
