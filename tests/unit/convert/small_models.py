"""Small random models of every family, as Hugging Face directories and as oracles."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_huatuo.models.architecture import Architecture, RopeScaling
from megatron_huatuo.models.hf_config import config_json
from megatron_huatuo.models.weight_table import hf_shapes
from tests.unit.models import baichuan_oracle

_LLAMA = Architecture(
    family="llama",
    num_layers=2,
    hidden_size=96,
    ffn_hidden_size=136,
    num_attention_heads=6,
    num_query_groups=2,
    head_dim=16,
    vocab_size=160,
    norm_epsilon=1e-5,
    rope_theta=5e5,
    max_position_embeddings=256,
    eos_token_id=2,
    bos_token_id=1,
    pad_token_id=0,
)
_BAICHUAN = dataclasses.replace(
    _LLAMA, family="baichuan2", num_query_groups=6, norm_epsilon=1e-6, rope_theta=1e4, norm_head=True
)
SMALL = {
    "llama": _LLAMA,
    "llama-odd-heads-tied": dataclasses.replace(  # tied and with scaled positions, as Llama 3.2
        _LLAMA,
        hidden_size=80,
        num_attention_heads=5,
        num_query_groups=5,
        head_dim=12,
        tied_embeddings=True,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64),
    ),
    "qwen2-tied": dataclasses.replace(_LLAMA, family="qwen2", qkv_bias=True, tied_embeddings=True, norm_epsilon=1e-6),
    "qwen2": dataclasses.replace(_LLAMA, family="qwen2", qkv_bias=True, num_query_groups=6),
    "mistral-window": dataclasses.replace(_LLAMA, family="mistral", sliding_window=9),
    "qwen3-tied": dataclasses.replace(
        _LLAMA, family="qwen3", qk_norm=True, head_dim=24, tied_embeddings=True, norm_epsilon=1e-6
    ),
    "gemma3": dataclasses.replace(  # as 4B: a window shorter than a document, layers of both kinds, one group
        _LLAMA,
        family="gemma3",
        num_query_groups=1,
        tied_embeddings=True,
        activation="gelu_tanh",
        qk_norm=True,
        zero_centered_norms=True,
        post_norms=True,
        scaled_embedding=True,
        query_pre_attn_scalar=20,
        sliding_window=7,
        global_every=2,
        rope_theta=1e6,
        local_rope_theta=1e4,
        rope_factor=8.0,
        norm_epsilon=1e-6,
    ),
    "baichuan2-rope": _BAICHUAN,
    "baichuan2-alibi": dataclasses.replace(_BAICHUAN, alibi=True, rope_theta=None),
}


def random_weights(architecture: Architecture, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights large enough that every part of the model matters."""
    generator = torch.Generator().manual_seed(11)
    weights = {}
    for name, shape in hf_shapes(architecture).items():
        values = torch.randn(shape, generator=generator)
        is_norm, middle = name.endswith("norm.weight"), 0 if architecture.zero_centered_norms else 1
        weights[name] = (middle + 0.1 * values if is_norm else 0.15 * values).to(dtype)
    return weights


def write_model(directory: Path, architecture: Architecture, dtype: torch.dtype = torch.float32) -> Path:
    """A Hugging Face directory with random weights and no tokenizer."""
    directory.mkdir(parents=True)
    save_file(random_weights(architecture, dtype), directory / "model.safetensors", metadata={"format": "pt"})
    content = config_json(architecture, str(dtype).removeprefix("torch."))
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def oracle_logits(directory: Path, architecture: Architecture, documents: list[torch.Tensor], dtype: torch.dtype):
    """([logits of each document], {name: weight that has requires_grad}) by code that is not ours."""
    if architecture.family == "baichuan2":
        weights = {k: v.to(dtype).requires_grad_() for k, v in load_file(directory / "model.safetensors").items()}
        outputs = [
            baichuan_oracle.logits(
                weights,
                tokens,
                num_layers=architecture.num_layers,
                num_heads=architecture.num_attention_heads,
                epsilon=architecture.norm_epsilon,
                theta=architecture.rope_theta,
            )
            for tokens in documents
        ]
        return outputs, weights
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    model.model.embed_tokens.padding_idx = None  # transformers gives that row no gradient
    return [model(tokens[None]).logits[0] for tokens in documents], dict(model.named_parameters())
