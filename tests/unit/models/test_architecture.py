"""Descriptions of backbones: presets, published config.json files, and refusals by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_preset, presets, read_architecture
from megatron_huatuo.models.hf_config import architecture_fields, config_json, load_architecture

SHARED = Path(__file__).parents[4] / "shared" / "data" / "baichuan2"


def _llama_json(**changes: Any) -> dict[str, Any]:
    return {**config_json(get_preset("llama-3-8b"), "bfloat16"), **changes}


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_preset_equals_the_published_configuration(size: str) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no published Baichuan2 files in {SHARED}")
    assert load_architecture(SHARED / size) == get_preset(f"baichuan2-{size}")


@pytest.mark.parametrize("name", presets())
def test_config_json_and_dict_give_the_architecture_back(name: str) -> None:
    architecture = get_preset(name)
    assert Architecture(**architecture_fields(config_json(architecture, "bfloat16"), "config.json")) == architecture
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


def test_current_transformers_reads_the_written_configuration(tmp_path: Path) -> None:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(config_json(get_preset("qwen2.5-7b"), "bfloat16")))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.rope_parameters["rope_theta"], config.num_key_value_heads, config.intermediate_size) == (
        1e6,
        4,
        18944,
    )
    config.save_pretrained(tmp_path / "again")
    assert load_architecture(tmp_path / "again") == get_preset("qwen2.5-7b")


def test_old_layout_of_rope_theta_is_read() -> None:
    config = _llama_json(rope_theta=12345.0, torch_dtype="bfloat16")
    del config["rope_parameters"]
    assert architecture_fields(config, "config.json")["rope_theta"] == 12345.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "unsupported setting 'rope_scaling'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "unsupported setting 'rope_parameters'"),
        ({"attention_bias": True}, "unsupported setting 'attention_bias': got True, need False"),
        ({"mlp_bias": True}, "unsupported setting 'mlp_bias'"),
        ({"use_sliding_window": True}, "unsupported setting 'use_sliding_window'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "unsupported setting 'layer_types'"),
        ({"hidden_act": "gelu"}, "unsupported setting 'hidden_act': got 'gelu', need 'silu'"),
        ({"quantization_config": {"bits": 4}}, "unsupported setting 'quantization_config': got .*, need None"),
        (
            {"quantization": {"group_size": 64}},
            r"'quantization': got .*, need None \(.*\)\. Its weights are quantised: take",
        ),
        ({"compression_config": {"ignore": ["lm_head"] * 99}}, r"'compression_config': got .{1,99}…, need None \("),
        ({"model_type": "mixtral"}, "unsupported 'model_type': got 'mixtral', need one of llama, mistral, qwen2"),
        ({"model_type": "baichuan", "vocab_size": 64000}, "Baichuan 1"),
        ({"hidden_size": None}, "missing setting 'hidden_size'"),
        ({"num_key_value_heads": 5}, "wrong num_query_groups: got 5, need a divisor of num_attention_heads = 32"),
        ({"num_hidden_layers": 0}, "wrong setting 'num_hidden_layers': got 0, need a whole number above 0"),
    ],
)
def test_unsupported_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_llama_json(**changes)))
    with pytest.raises(ConfigError, match=message):
        load_architecture(tmp_path)


def test_missing_and_torn_configuration_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, "Qwen/Qwen2.5-7B"):
        with pytest.raises(ConfigError, match=rf"{path} is not a local directory with a config\.json.*hf download"):
            load_architecture(path)
    (tmp_path / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(IntegrityError, match=r"incomplete or not JSON: .*config\.json"):
        load_architecture(tmp_path)


def test_an_adapter_is_no_model_even_beside_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-7B"}')
    message = (
        r"wrong model: got an adapter \(.*adapter_config\.json\), need a whole model\. Merge it into its base model"
    )
    for config in (None, _llama_json()):
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match=message):
            load_architecture(tmp_path)


def test_wrong_descriptions_are_refused() -> None:
    content = get_preset("toy").to_dict()
    with pytest.raises(ConfigError, match=r"unknown \['depth'\], missing \[\]"):
        Architecture.from_dict({**content, "depth": 3})
    with pytest.raises(ConfigError, match=r"unknown \[\], missing \['vocab_size'\]"):
        Architecture.from_dict({key: value for key, value in content.items() if key != "vocab_size"})
    with pytest.raises(ConfigError, match="wrong positions: got rope_theta = None with alibi = False"):
        Architecture.from_dict({**content, "rope_theta": None})
    with pytest.raises(ConfigError, match="norm_head with tied_embeddings"):
        Architecture.from_dict({**content, "norm_head": True, "tied_embeddings": True})
    with pytest.raises(ConfigError, match="unknown family: got 'gpt2'"):
        read_architecture({**content, "family": "gpt2"})
    with pytest.raises(ConfigError, match="unknown preset: got 'baichuan3', need one of toy, yi-34b"):
        get_preset("baichuan3")


def test_a_fingerprint_stays_when_a_later_version_adds_a_field() -> None:
    toy = get_preset("toy")
    told = toy.without_defaults()
    assert "qkv_bias" not in told and "rope_scaling" not in told and told["num_layers"] == 2
    assert dataclasses.replace(toy, qkv_bias=True).without_defaults()["qkv_bias"] is True
