"""Llama 2, 3, 3.1 and 3.2, Yi, and every other model that is published in their layout; the demo's toy is one."""

from __future__ import annotations

from typing import Any, ClassVar

from megatron_huatuo.models.architecture import Architecture, RopeScaling
from megatron_huatuo.models.family import Family


def _preset(layers: int, hidden: int, ffn: int, heads: int, groups: int | None = None, **others: Any) -> Architecture:
    common = {"norm_epsilon": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 4096}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return Architecture.of_layers(layers, hidden, ffn, heads, groups, family="llama", **{**common, **ids, **others})


_LLAMA_3 = {"vocab_size": 128256, "rope_theta": 5e5, "bos_token_id": 128000, "eos_token_id": 128001}
_LLAMA_3_1 = {
    **_LLAMA_3,
    "max_position_embeddings": 131072,
    "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192),
}


class Llama(Family):
    """The layout that the others are described against."""

    name = "llama"
    model_type = "llama"
    hf_class = "LlamaForCausalLM"
    presets: ClassVar[dict[str, Architecture]] = {
        "toy": _preset(2, 192, 512, 6, 2, vocab_size=3072, norm_epsilon=1e-6, max_position_embeddings=2048),
        "yi-34b": _preset(60, 7168, 20480, 56, 8, vocab_size=64000, rope_theta=5e6, pad_token_id=0),
        "llama-2-7b": _preset(32, 4096, 11008, 32, vocab_size=32000),
        "llama-2-13b": _preset(40, 5120, 13824, 40, vocab_size=32000),
        "llama-3-8b": _preset(32, 4096, 14336, 32, 8, max_position_embeddings=8192, **_LLAMA_3),
        "llama-3.1-8b": _preset(32, 4096, 14336, 32, 8, **_LLAMA_3_1),
        "llama-3.1-70b": _preset(80, 8192, 28672, 64, 8, **_LLAMA_3_1),
    }

    def config_json(self, architecture: Architecture) -> dict[str, Any]:
        """Says that there are no biases."""
        return {**super().config_json(architecture), "attention_bias": False, "mlp_bias": False}
