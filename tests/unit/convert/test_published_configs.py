"""config.json files as they are published: each is read, and the presets are what the base models say."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture, RopeScaling
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.models.hf_config import architecture_fields, config_json, load_architecture
from tests.unit.convert.published_configs import (
    COMMON,
    GEMMA,
    GEMMA_3_1B,
    LLAMA_2_7B,
    LLAMA_3_1,
    MOST_USED,
    PUBLISHED,
)

BASES = {
    "llama-2-7b": "Llama-2-7b-hf",
    "llama-2-13b": "Llama-2-13b-hf",
    "llama-3-8b": "Meta-Llama-3-8B",
    "yi-34b": "Yi-34B",
    "qwen2.5-7b": "Qwen2.5-7B",
    "qwen2.5-14b": "Qwen2.5-14B",
    "qwen3-0.6b": "Qwen3-0.6B-Base",
    "qwen3-1.7b": "Qwen3-1.7B-Base",
    "qwen3-4b": "Qwen3-4B-Base",
    "qwen3-8b": "Qwen3-8B-Base",
    "qwen3-14b": "Qwen3-14B-Base",
    "qwen3-32b": "Qwen3-32B",
    "mistral-7b-v0.1": "Mistral-7B-v0.1",
    "mistral-7b-v0.3": "Mistral-7B-v0.3",
    "mistral-nemo-12b": "Mistral-Nemo-Base-2407",
    "mistral-small-24b": "Mistral-Small-24B-Base-2501",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    found, expected = load_architecture(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert (found.num_layers, found.hidden_size) == (expected.num_hidden_layers, expected.hidden_size)
    assert (found.num_attention_heads, found.num_query_groups) == (
        expected.num_attention_heads,
        expected.num_key_value_heads,
    )
    assert (found.ffn_hidden_size, found.vocab_size) == (expected.intermediate_size, expected.vocab_size)
    assert (found.norm_epsilon, found.tied_embeddings) == (expected.rms_norm_eps, expected.tie_word_embeddings)
    assert found.rope_theta == expected.rope_parameters["rope_theta"]
    scaling = dataclasses.asdict(found.rope_scaling) if found.rope_scaling else {}
    assert scaling.items() <= expected.rope_parameters.items()
    assert expected.rope_parameters["rope_type"] == ("llama3" if scaling else "default")
    written = json.loads(json.dumps(config_json(found, "bfloat16")))
    assert (
        Architecture(**architecture_fields(written, "config.json")) == found == Architecture.from_dict(found.to_dict())
    )


@pytest.mark.parametrize("preset", BASES)
def test_preset_is_the_published_base_model(preset: str) -> None:
    assert Architecture(**architecture_fields(PUBLISHED[BASES[preset]], "config.json")) == get_preset(preset)


@pytest.mark.parametrize("name", GEMMA)
def test_text_part_of_gemma_3_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(GEMMA[name]))
    found, expected = load_architecture(tmp_path), AutoConfig.from_pretrained(tmp_path)
    expected = getattr(expected, "text_config", expected)
    assert found == get_preset(name.removesuffix("-pt"))
    assert (found.num_layers, found.hidden_size, found.head_dim) == (
        expected.num_hidden_layers,
        expected.hidden_size,
        expected.head_dim,
    )
    assert (found.num_attention_heads, found.num_query_groups) == (
        expected.num_attention_heads,
        expected.num_key_value_heads,
    )
    assert (found.ffn_hidden_size, found.vocab_size) == (expected.intermediate_size, expected.vocab_size)
    assert (found.query_pre_attn_scalar, found.tied_embeddings) == (
        expected.query_pre_attn_scalar,
        expected.tie_word_embeddings,
    )
    kinds = [expected.sliding_window if kind == "sliding_attention" else None for kind in expected.layer_types]
    assert found.windows() == kinds
    rope = expected.rope_parameters
    assert (found.rope_theta, found.local_rope_theta) == (
        rope["full_attention"]["rope_theta"],
        rope["sliding_attention"]["rope_theta"],
    )
    assert found.rope_factor == rope["full_attention"].get("factor", 1.0)
    expected.save_pretrained(tmp_path / "again")  # as transformers 5 writes it
    assert load_architecture(tmp_path / "again") == found
    written = json.loads(json.dumps(config_json(found, "bfloat16")))
    assert (
        Architecture(**architecture_fields(written, "config.json")) == found == Architecture.from_dict(found.to_dict())
    )
    (tmp_path / "config.json").write_text(json.dumps(written))
    ours = AutoConfig.from_pretrained(tmp_path)
    assert (ours.rope_parameters, ours.layer_types) == (rope, expected.layer_types)


@pytest.mark.parametrize("name", MOST_USED)
def test_each_of_the_most_used_models_is_accepted_or_refused_with_one_sentence(tmp_path: Path, name: str) -> None:
    config, refusal = MOST_USED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if refusal is None:
        assert load_architecture(tmp_path).num_layers > 0
        return
    with pytest.raises(ConfigError, match=refusal) as caught:
        load_architecture(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "unsupported setting 'final_logit_softcapping': got 30.0, need None"),
        ({"use_bidirectional_attention": True}, "unsupported setting 'use_bidirectional_attention': got True"),
        (
            {"hidden_activation": "gelu"},
            "unsupported setting 'hidden_activation': got 'gelu', need 'gelu_pytorch_tanh'",
        ),
        ({"sliding_window": None}, "wrong setting 'sliding_window': got None, need a whole number above 0"),
        ({"query_pre_attn_scalar": "256"}, "wrong setting 'query_pre_attn_scalar': got '256', need a whole number"),
        ({"sliding_window_pattern": 0}, "wrong setting 'sliding_window_pattern': got 0, need a whole number above 0"),
        ({"layer_types": ["full_attention"] * 26}, "'layer_types': got .* as sliding_window_pattern = 6 says"),
        ({"layer_types": ["chunked_attention"]}, "unsupported setting 'layer_types': got 'chunked_attention', need"),
        (
            {"rope_parameters": {"global": {}}},
            "unsupported setting 'rope_parameters': got 'global', need full_attention",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "unsupported setting 'rope_parameters': got scaled sliding_attention, need plain",
        ),
        ({"num_key_value_heads": 3}, "wrong num_query_groups: got 3, need a divisor of num_attention_heads = 4"),
    ],
)
def test_settings_of_gemma_that_are_not_supported_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GEMMA_3_1B, **changes}))
    with pytest.raises(ConfigError, match=message):
        load_architecture(tmp_path)


def test_a_mistral_that_transformers_reads_as_ministral_has_no_window_in_global_layers(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = {**PUBLISHED["Mistral-7B-v0.1"], "layer_types": ["full_attention"] * 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).model_type == "ministral"
    assert load_architecture(tmp_path).windows() == [None] * 32
    for window in (0, -1, "4096"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": window}))
        message = (
            rf"wrong setting 'sliding_window': got {window!r}, need a whole number above 0, or null \(.*config\.json"
        )
        with pytest.raises(ConfigError, match=message):
            load_architecture(tmp_path)


def test_a_wrapper_without_its_text_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GEMMA["gemma-3-4b-pt"], "text_config": None}))
    with pytest.raises(ConfigError, match="wrong setting 'text_config': got None, need an object"):
        load_architecture(tmp_path)


def test_linear_scaling_divides_positions(alone: None) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from megatron_huatuo.models.core.rotary import RowRotaryEmbedding

    scaled = {**LLAMA_2_7B, "rope_scaling": {"type": "linear", "factor": 2.0}}
    fields = architecture_fields(scaled, "config.json")
    expected, _ = ROPE_INIT_FUNCTIONS["linear"](LlamaConfig(**copy.deepcopy(scaled)), "cpu")
    settings = {"rotary_percent": 1.0, "rotary_base": fields["rope_theta"], "use_cpu_initialization": True}
    assert torch.equal(RowRotaryEmbedding(128, factor=fields["rope_factor"], **settings).inv_freq, expected)


def test_frequencies_of_llama_3_1_are_those_of_transformers(alone: None) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from megatron_huatuo.models.core.rotary import RowRotaryEmbedding

    published = PUBLISHED["Llama-3.1-8B"]
    expected, factor = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**copy.deepcopy(published)), "cpu")
    fields = architecture_fields(published, "config.json")
    settings = {"rotary_percent": 1.0, "rotary_base": fields["rope_theta"], "use_cpu_initialization": True}
    found = RowRotaryEmbedding(128, scaling=fields["rope_scaling"], **settings).inv_freq
    assert factor == 1 and torch.equal(found, expected)
    assert not torch.equal(RowRotaryEmbedding(128, **settings).inv_freq, expected)


def test_transformers_reads_what_is_written_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoConfig

    architecture = Architecture(**architecture_fields(PUBLISHED["Llama-3.1-8B"], "config.json"))
    written = config_json(architecture, "bfloat16")
    assert written["torch_dtype"] == written["dtype"] == "bfloat16"
    assert written["rope_scaling"] == LLAMA_3_1 and written["rope_theta"] == 500000.0
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.dtype == torch.bfloat16
    assert config.rope_parameters == {**LLAMA_3_1, "rope_theta": 500000.0}
    config.save_pretrained(tmp_path / "again")
    assert load_architecture(tmp_path / "again") == architecture
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "linear", "factor": 1.0}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 1.0}},
        {"pretraining_tp": 2},
        {"pad_token_id": -1},
        {"temperature": 1.0, "top_p": 1.0, "pruned_heads": {}, "tie_encoder_decoder": False},
        {"_attn_implementation_autoset": True},
    ],
)
def test_settings_that_change_nothing_are_accepted(changes: dict[str, Any]) -> None:
    fields = architecture_fields({**LLAMA_2_7B, **changes}, "config.json")
    assert Architecture(**fields) == get_preset("llama-2-7b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "wrong setting 'num_attention_heads': got 0, need a whole number above 0"),
        ({"num_attention_heads": "40"}, "wrong setting 'num_attention_heads': got '40'"),
        ({"hidden_size": True}, "wrong setting 'hidden_size': got True"),
        ({"eos_token_id": []}, r"wrong setting 'eos_token_id': got \[\], need a token id, or a list of them"),
        ({"bos_token_id": "1"}, "wrong setting 'bos_token_id': got '1'"),
        ({"pad_token_id": [0]}, r"wrong setting 'pad_token_id': got \[0\], need a token id"),
        ({"pad_token_id": 32000}, "wrong setting 'pad_token_id': got 32000, need one below vocab_size = 32000"),
        ({"rope_scaling": "linear"}, "wrong setting 'rope_scaling': got 'linear', need an object"),
        ({"rope_scaling": [2]}, r"wrong setting 'rope_scaling': got \[2\], need an object"),
        ({"rope_scaling": {"type": "linear", "factor": -2.0}}, "unsupported setting 'rope_scaling': got .*linear"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0}}, "unsupported setting 'rope_scaling'"),
        ({"rope_scaling": {**LLAMA_3_1, "factor": "8"}}, "unsupported setting 'rope_scaling'"),
        ({"rope_scaling": {**LLAMA_3_1, "high_freq_factor": 1.0}}, "unsupported setting 'rope_scaling'"),
        ({"rope_scaling": LLAMA_3_1, "rope_parameters": {"rope_type": "default"}}, "described twice, and differently"),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}, "described twice, and differently"),
        ({"rope_theta": "10000"}, "wrong setting 'rope_theta': got '10000', need a number above 0"),
        ({"rope_parameters": {"rope_theta": [1e4]}}, r"wrong setting 'rope_theta': got \[10000\.0\]"),
        ({"layer_types": 5}, "wrong setting 'layer_types': got 5, need a list"),
        ({"layer_types": [["full_attention"]]}, "unsupported setting 'layer_types'"),
        ({"model_type": ["llama"]}, "unsupported 'model_type'"),
        ({"rms_norm_eps": -1e-6}, "wrong setting 'rms_norm_eps': got -1e-06, need a number above 0"),
        ({"rms_norm_eps": "1e-6"}, "wrong setting 'rms_norm_eps': got '1e-6'"),
        ({"rms_norm_eps": float("nan")}, "wrong setting 'rms_norm_eps': got nan"),
        ({"tie_word_embeddings": "false"}, "wrong setting 'tie_word_embeddings': got 'false', need true or false"),
        ({"head_dim": 127}, "wrong head_dim: got 127, need an even number"),
        ({"use_mrope": True}, "unsupported setting 'use_mrope': got True, need False"),
        ({"pruned_heads": {"0": [1]}}, "unsupported setting 'pruned_heads'"),
        ({"position_embedding": "alibi"}, "wrong setting 'position_embedding': got 'alibi', need 'rope'"),
    ],
)
def test_wrong_values_are_one_line_that_names_them(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_2_7B, **changes}))
    with pytest.raises(ConfigError, match=message):
        load_architecture(tmp_path)


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"wrong configuration: got a list, need a JSON object \(.*config\.json\)"):
        load_architecture(tmp_path)


_BAICHUAN = {
    **COMMON,
    "model_type": "baichuan",
    "vocab_size": 125696,
    "rms_norm_eps": 1e-06,
    "model_max_length": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_BAICHUAN_7B = {
    **_BAICHUAN,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}
_BAICHUAN_13B = {
    **_BAICHUAN,
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
}


def test_positions_of_baichuan2_follow_from_its_size_or_are_named() -> None:
    def alibi(config: dict[str, Any], **changes: Any) -> bool:
        return architecture_fields({**config, **changes}, "config.json")["alibi"]

    assert alibi(_BAICHUAN_13B) and alibi(_BAICHUAN_13B, max_position_embeddings=4096)
    assert not alibi(_BAICHUAN_7B) and not alibi(_BAICHUAN_7B, max_position_embeddings=4096)
    assert alibi(_BAICHUAN_7B, num_hidden_layers=30, position_embedding="alibi")
    for changes, value in (({"position_embedding": "ALIBI"}, "'ALIBI'"), ({"num_hidden_layers": 39}, "None")):
        message = f"wrong setting 'position_embedding': got {value}, need 'alibi' or 'rope'"
        with pytest.raises(ConfigError, match=message):
            alibi(_BAICHUAN_13B, **changes)


def test_architectures_that_compute_something_else_are_told_apart() -> None:
    base = get_preset("qwen2.5-14b")
    instruct = Architecture(**architecture_fields(PUBLISHED["Qwen2.5-14B-Instruct"], "config.json"))
    assert base.differences(instruct) == [("norm_epsilon", 1e-5, 1e-6)]
    scaled = dataclasses.replace(base, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    assert [name for name, *_ in base.differences(scaled)] == ["rope_scaling"]
    assert base.differences(dataclasses.replace(base, max_position_embeddings=1, eos_token_id=None)) == []
