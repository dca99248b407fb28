"""Twenty medical models by name: whether the base that each began with is taken, and docs/support_matrix.md says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.hf_config import load_architecture
from tests.unit.convert.published_configs import COMMON, GEMMA, GEMMA_3_1B, LLAMA_2_7B, PUBLISHED

MATRIX = Path(__file__).parents[3] / "docs" / "support_matrix.md"


class Base(NamedTuple):
    """config: as the base model is published. outcome: (family, layers, hidden_size), or the words of the refusal."""

    name: str
    config: dict[str, Any]
    outcome: tuple[str, int, int] | str


_LLAMA_1 = {
    **COMMON,
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
    "vocab_size": 32000,
}
_LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
}
_BAICHUAN = {
    "_from_model_config": True,
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "tokenizer_class": "BaichuanTokenizer",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_max_length": 4096,
    "model_type": "baichuan",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.29.2",
    "use_cache": True,
}
_SIZES_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
_SIZES_13B = {"hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40}
_BAICHUAN_13B = {**_BAICHUAN, **_SIZES_13B, "intermediate_size": 13696, "gradient_checkpointing": False}
_QWEN_72B = {
    **PUBLISHED["Qwen2.5-7B-Instruct"],
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "max_window_layers": 70,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
}
_GEMMA_1_7B = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
_CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "layernorm_epsilon": 1e-05,
    "max_sequence_length": 2048,
    "model_type": "chatglm",
    "num_attention_heads": 32,
    "num_layers": 28,
    "position_encoding_2d": True,
    "vocab_size": 130528,
}
_GEMMA_27B_TEXT = {
    **{key: value for key, value in GEMMA_3_1B.items() if key != "sliding_window_pattern"},
    **GEMMA["gemma-3-27b-pt"]["text_config"],
    "max_position_embeddings": 131072,
    "vocab_size": 262208,
}
_LLAMA_3 = Base("Meta-Llama-3-8B", PUBLISHED["Meta-Llama-3-8B"], ("llama", 32, 4096))
MEDICAL = {
    "HuatuoGPT-II 7B": Base(
        "Baichuan2-7B-Base",
        {**_BAICHUAN, **_SIZES_7B, "max_position_embeddings": 4096, "vocab_size": 125696},
        ("baichuan2", 32, 4096),
    ),
    "HuatuoGPT-II 13B": Base("Baichuan2-13B-Base", {**_BAICHUAN_13B, "vocab_size": 125696}, ("baichuan2", 40, 5120)),
    "HuatuoGPT-II 34B": Base("Yi-34B", PUBLISHED["Yi-34B"], ("llama", 60, 7168)),
    "HuatuoGPT-o1-8B": Base("Llama-3.1-8B-Instruct", PUBLISHED["Llama-3.1-8B-Instruct"], ("llama", 32, 4096)),
    "HuatuoGPT-o1-72B": Base("Qwen2.5-72B-Instruct", _QWEN_72B, ("qwen2", 80, 8192)),
    "Meditron-7B": Base("Llama-2-7b", LLAMA_2_7B, ("llama", 32, 4096)),
    "Meditron-70B": Base("Llama-2-70b", {**LLAMA_2_7B, **_LLAMA_70B}, ("llama", 80, 8192)),
    "PMC-LLaMA-13B": Base("LLaMA-13B", {**_LLAMA_1, **_SIZES_13B, "intermediate_size": 13824}, ("llama", 40, 5120)),
    "ChatDoctor": Base("LLaMA-7B", {**_LLAMA_1, **_SIZES_7B}, ("llama", 32, 4096)),
    "BioMistral-7B": Base("Mistral-7B-Instruct-v0.1", PUBLISHED["Mistral-7B-v0.1"], ("mistral", 32, 4096)),
    "OpenBioLLM-8B": _LLAMA_3,
    "MMed-Llama-3-8B": _LLAMA_3,
    "Med42-v2-70B": Base(
        "Meta-Llama-3-70B-Instruct", {**PUBLISHED["Meta-Llama-3-8B-Instruct"], **_LLAMA_70B}, ("llama", 80, 8192)
    ),
    "Qwen2.5-Aloe-Beta-7B": Base("Qwen2.5-7B", PUBLISHED["Qwen2.5-7B"], ("qwen2", 28, 3584)),
    "MedGemma-4B": Base("Gemma 3 4B", GEMMA["gemma-3-4b-pt"], ("gemma3", 34, 2560)),
    "MedGemma-27B, text": Base("Gemma 3 27B", _GEMMA_27B_TEXT, ("gemma3", 62, 5376)),
    "II-Medical-8B": Base("Qwen3-8B", PUBLISHED["Qwen3-8B"], ("qwen3", 36, 4096)),
    "DISC-MedLLM": Base(
        "Baichuan-13B-Base",
        {**_BAICHUAN_13B, "gradient_checkpointing": [False], "vocab_size": 64000},
        "which is Baichuan 1; need Baichuan2",
    ),
    "BianQue-2": Base("ChatGLM-6B", _CHATGLM, "unsupported 'model_type': got 'chatglm'"),
    "Apollo-7B": Base("Gemma 7B", _GEMMA_1_7B, "unsupported 'model_type': got 'gemma'"),
}


@pytest.mark.parametrize("model", MEDICAL)
def test_the_base_of_each_medical_model_is_taken_or_refused_in_words(tmp_path: Path, model: str) -> None:
    base = MEDICAL[model]
    (tmp_path / "config.json").write_text(json.dumps(base.config))
    if isinstance(base.outcome, str):
        with pytest.raises(ConfigError, match=base.outcome):
            load_architecture(tmp_path)
        return
    found = load_architecture(tmp_path)
    assert (found.family, found.num_layers, found.hidden_size) == base.outcome


def test_the_support_matrix_has_this_very_table() -> None:
    section = MATRIX.read_text(encoding="utf-8").split("## Bases of medical models\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line][2:]
    expected = [
        [model, base.name, f"refused: {base.outcome}" if isinstance(base.outcome, str) else base.outcome[0]]
        for model, base in MEDICAL.items()
    ]
    assert rows == expected
    taken = sum(not isinstance(base.outcome, str) for base in MEDICAL.values())
    assert f"{taken} of {len(MEDICAL)}" in section
