"""config.json files of published models, written from their formats: what each names, in the order of families."""

from __future__ import annotations

from typing import Any

COMMON = {"hidden_act": "silu", "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16"}
_LLAMA = {
    **COMMON,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
_LLAMA_2 = {
    **_LLAMA,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "vocab_size": 32000,
}
LLAMA_2_7B = {
    **_LLAMA_2,
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
}
_LLAMA_2_13B = {
    **_LLAMA_2,
    "_name_or_path": "meta-llama/Llama-2-13b-hf",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}
_LLAMA_3_8B = {
    **_LLAMA,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "transformers_version": "4.40.0.dev0",
    "vocab_size": 128256,
}
LLAMA_3_1 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_YI_34B = {
    **_LLAMA,
    "hidden_size": 7168,
    "intermediate_size": 20480,
    "max_position_embeddings": 4096,
    "num_attention_heads": 56,
    "num_hidden_layers": 60,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 5000000.0,
    "transformers_version": "4.34.0",
    "vocab_size": 64000,
}
_QWEN = {
    **COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "max_position_embeddings": 131072,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "transformers_version": "4.40.1",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
_QWEN_7B = {
    **_QWEN,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
}
_QWEN_14B = {
    **_QWEN,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "max_window_layers": 48,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "transformers_version": "4.43.1",
}
_QWEN_INSTRUCT = {"eos_token_id": 151645, "max_position_embeddings": 32768, "transformers_version": "4.43.1"}

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-2-7b-hf": LLAMA_2_7B,
    "Llama-2-7b-chat-hf": {**LLAMA_2_7B, "_name_or_path": "meta-llama/Llama-2-7b-chat-hf", "pad_token_id": 0},
    "Llama-2-13b-hf": _LLAMA_2_13B,
    "Llama-2-13b-hf, first version": {**_LLAMA_2_13B, "pretraining_tp": 2, "pad_token_id": 0},
    "Meta-Llama-3-8B": _LLAMA_3_8B,
    "Meta-Llama-3-8B-Instruct": {**_LLAMA_3_8B, "eos_token_id": 128009},
    "Llama-3.1-8B": {
        **_LLAMA_3_8B,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "rope_scaling": LLAMA_3_1,
        "transformers_version": "4.43.0.dev0",
    },
    "Llama-3.1-8B-Instruct": {
        **_LLAMA_3_8B,
        "eos_token_id": [128001, 128008, 128009],
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "rope_scaling": LLAMA_3_1,
        "transformers_version": "4.42.3",
    },
    "Yi-34B": _YI_34B,
    "Yi-34B-Chat": {**_YI_34B, "attention_bias": False, "transformers_version": "4.35.0"},
    "Yi-1.5-34B": {
        **_YI_34B,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-06,
        "transformers_version": "4.40.0",
        "use_cache": False,
    },
    "Qwen2.5-0.5B": {
        **_QWEN,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "Qwen2.5-7B": _QWEN_7B,
    "Qwen2.5-7B-Instruct": {key: v for key, v in {**_QWEN_7B, **_QWEN_INSTRUCT}.items() if key != "use_mrope"},
    "Qwen2.5-14B": _QWEN_14B,
    "Qwen2.5-14B-Instruct": {
        key: v
        for key, v in {**_QWEN_14B, **_QWEN_INSTRUCT, "rms_norm_eps": 1e-06, "max_window_layers": 70}.items()
        if key != "use_mrope"
    },
}

_QWEN_3 = {
    **COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "transformers_version": "4.51.0",
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def _qwen3(layers: int, hidden: int, ffn: int, heads: int, **others: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads}
    return {**_QWEN_3, **sizes, "num_hidden_layers": layers, "max_window_layers": layers, **others}


_QWEN_3_BASE = {"eos_token_id": 151643, "max_position_embeddings": 32768}
PUBLISHED |= {
    "Qwen3-0.6B": _qwen3(28, 1024, 3072, 16, tie_word_embeddings=True),
    "Qwen3-0.6B-Base": _qwen3(28, 1024, 3072, 16, tie_word_embeddings=True, **_QWEN_3_BASE),
    "Qwen3-1.7B-Base": _qwen3(28, 2048, 6144, 16, tie_word_embeddings=True, **_QWEN_3_BASE),
    "Qwen3-4B-Base": _qwen3(36, 2560, 9728, 32, tie_word_embeddings=True, **_QWEN_3_BASE),
    "Qwen3-8B": _qwen3(36, 4096, 12288, 32),
    "Qwen3-8B-Base": _qwen3(36, 4096, 12288, 32, **_QWEN_3_BASE),
    "Qwen3-14B-Base": _qwen3(40, 5120, 17408, 40, **_QWEN_3_BASE),
    "Qwen3-32B": _qwen3(64, 5120, 25600, 64),
}

_MISTRAL = {
    **COMMON,
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "transformers_version": "4.42.0.dev0",
    "vocab_size": 32768,
}
_MISTRAL_LARGER = {"head_dim": 128, "hidden_size": 5120, "num_hidden_layers": 40, "vocab_size": 131072}
PUBLISHED |= {
    "Mistral-7B-v0.1": {
        **{key: value for key, value in _MISTRAL.items() if key != "attention_dropout"},
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "transformers_version": "4.34.0.dev0",
        "vocab_size": 32000,
    },
    "Mistral-7B-v0.3": _MISTRAL,
    "Mistral-Nemo-Base-2407": {**_MISTRAL, **_MISTRAL_LARGER, "max_position_embeddings": 128000},
    "Mistral-Small-24B-Base-2501": {
        **_MISTRAL,
        **_MISTRAL_LARGER,
        "intermediate_size": 32768,
        "rope_theta": 100000000.0,
        "transformers_version": "4.49.0.dev0",
    },
}

GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}


def _gemma3(layers: int, hidden: int, ffn: int, **others: Any) -> dict[str, Any]:
    """Text and pictures; what is Gemma3TextConfig's default is not named."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "model_type": "gemma3_text",
            "num_hidden_layers": layers,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            **others,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }


GEMMA: dict[str, dict[str, Any]] = {
    "gemma-3-1b-pt": GEMMA_3_1B,
    "gemma-3-4b-pt": _gemma3(34, 2560, 10240),
    "gemma-3-12b-pt": _gemma3(48, 3840, 15360, num_attention_heads=16, num_key_value_heads=8),
    "gemma-3-27b-pt": _gemma3(
        62, 5376, 21504, head_dim=128, num_attention_heads=32, num_key_value_heads=16, query_pre_attn_scalar=168
    ),
}
_SIZES = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32064}
_SMOLLM2 = {
    **_LLAMA,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "vocab_size": 49152,
}
# The text models that people take most: (config.json, what refuses it, or None).
MOST_USED: dict[str, tuple[dict[str, Any], str | None]] = {
    **{
        name: (PUBLISHED[name], None)
        for name in (
            "Qwen2.5-7B-Instruct",
            "Qwen2.5-0.5B",
            "Qwen3-8B",
            "Qwen3-0.6B",
            "Llama-3.1-8B-Instruct",
            "Mistral-7B-v0.3",
            "Llama-2-7b-chat-hf",
            "Yi-1.5-34B",
        )
    },
    "gemma-3-1b-it": (GEMMA_3_1B, None),
    "medgemma-4b-it": (GEMMA["gemma-3-4b-pt"], None),
    "SmolLM2-135M-Instruct": (_SMOLLM2, None),
    "Llama-3.2-1B-Instruct": (
        {
            **PUBLISHED["Llama-3.1-8B-Instruct"],
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "rope_scaling": {**LLAMA_3_1, "factor": 32.0},
            "tie_word_embeddings": True,
        },
        None,
    ),
    "DeepSeek-R1-Distill-Qwen-7B": (
        {**PUBLISHED["Qwen2.5-7B"], "bos_token_id": 151646, "eos_token_id": 151643, "rope_theta": 10000},
        None,
    ),
    "TinyLlama-1.1B-Chat-v1.0": (
        {
            **LLAMA_2_7B,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 2048,
            "num_hidden_layers": 22,
            "num_key_value_heads": 4,
        },
        None,
    ),
    "Qwen2.5-7B-Instruct for 131072 tokens": (
        {
            **PUBLISHED["Qwen2.5-7B-Instruct"],
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
        },
        "unsupported setting 'rope_scaling': got .*yarn.*, need plain rotary embeddings",
    ),
    "Qwen3-8B-AWQ": (
        {**PUBLISHED["Qwen3-8B"], "quantization_config": {"bits": 4, "quant_method": "awq"}},
        "unsupported setting 'quantization_config': got .*awq.*, need None",
    ),
    "Qwen3-30B-A3B": ({**_QWEN_3, "model_type": "qwen3_moe", "num_experts": 128}, "got 'qwen3_moe', need one of llama"),
    "Mixtral-8x7B-v0.1": ({**_MISTRAL, "model_type": "mixtral", "num_local_experts": 8}, "got 'mixtral'"),
    "DeepSeek-V3": ({**_SIZES, "model_type": "deepseek_v3", "q_lora_rank": 1536}, "got 'deepseek_v3'"),
    "gpt-oss-20b": ({**_SIZES, "model_type": "gpt_oss", "swiglu_limit": 7.0}, "got 'gpt_oss'"),
    "Phi-4-mini-instruct": ({**_SIZES, "model_type": "phi3", "partial_rotary_factor": 0.75}, "got 'phi3'"),
    "gemma-2-9b": ({**_SIZES, "model_type": "gemma2", "final_logit_softcapping": 30.0}, "got 'gemma2'"),
    "Qwen2.5-VL-7B-Instruct": ({**_QWEN, "model_type": "qwen2_5_vl"}, "got 'qwen2_5_vl'"),
    "Llama-4-Scout-17B-16E": ({"model_type": "llama4", "text_config": _SIZES}, "got 'llama4'"),
    "chatglm3-6b": ({"model_type": "chatglm", "num_layers": 28, "hidden_size": 4096}, "got 'chatglm'"),
    "gpt2": ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12}, "got 'gpt2'"),
}
