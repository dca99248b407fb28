"""What a backbone looks like, apart from its weights.

Invariant: an `Architecture` describes a model that `model.build` can build exactly; a setting that it cannot hold is
refused by name when the description is read, never dropped.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_huatuo.errors import ConfigError, DataError

FAMILIES = ("llama", "qwen2", "baichuan2")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretched rotary embeddings (rope_type "llama3" of transformers): wavelengths above
    original_max_position_embeddings / low_freq_factor grow by `factor`, those below … / high_freq_factor stay, and
    between the two it is blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Architecture:
    """Sizes and choices of one decoder-only transformer (RMSNorm, SwiGLU, causal)."""

    family: str
    """"llama", "qwen2" or "baichuan2": the Hugging Face layout of its weights."""
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Width of the gated linear unit, counted once (gate and up have this many rows each)."""
    num_attention_heads: int
    num_query_groups: int
    """Key-value heads; equal to num_attention_heads without grouped-query attention."""
    head_dim: int
    vocab_size: int
    """Rows of the embedding. Never padded: tensor_model_parallel_size must divide it."""
    norm_epsilon: float
    rope_theta: float | None
    """Base of rotary embeddings; None with ALiBi."""
    max_position_embeddings: int
    qkv_bias: bool = False
    tied_embeddings: bool = False
    norm_head: bool = False
    """Output rows are scaled to unit length before the product with the hidden state."""
    alibi: bool = False
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    rope_scaling: RopeScaling | None = None
    """None: plain rotary embeddings."""

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Architecture:
        """Raises: ConfigError naming a field that is missing or unknown."""
        fields = dataclasses.fields(cls)
        unknown = sorted(set(content) - {field.name for field in fields})
        missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in content]
        if unknown or missing:
            raise ConfigError(f"wrong fields of an architecture: unknown {unknown}, missing {missing}.")
        scaling = content.get("rope_scaling")
        return cls(**{**content, "rope_scaling": RopeScaling(**scaling) if scaling else None})

    def check_vocabulary(self, num_ids: int, tokenizer: str | os.PathLike[str]) -> None:
        """Raises: DataError when a tokenizer has ids beyond the embedding."""
        if num_ids > self.vocab_size:
            raise DataError(
                f"tokenizer does not fit the model: got {num_ids} ids, but the embedding has {self.vocab_size} rows "
                f"({tokenizer}). Use the model's own tokenizer."
            )

    def differences(self, other: Architecture) -> list[tuple[str, Any, Any]]:
        """(field, own value, the other's) of all that changes the function which the weights compute."""
        values = ((name, getattr(self, name), getattr(other, name)) for name in self.to_dict())
        return [(name, own, others) for name, own, others in values if own != others and name not in _WITHOUT_EFFECT]


# Lengths are not limited, initial values are replaced, and which ids end a text the tokenizer says.
_WITHOUT_EFFECT = ("max_position_embeddings", "initializer_range", "eos_token_id", "bos_token_id", "pad_token_id")


def _check(architecture: Architecture) -> None:
    if architecture.family not in FAMILIES:
        raise ConfigError(f"unknown family: got {architecture.family!r}, need one of {', '.join(FAMILIES)}.")
    sizes = (
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    )
    for name in sizes:
        value = getattr(architecture, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"wrong {name}: got {value!r}, need a whole number above 0.")
    if architecture.num_attention_heads % architecture.num_query_groups:
        raise ConfigError(
            f"wrong num_query_groups: got {architecture.num_query_groups}, "
            f"need a divisor of num_attention_heads = {architecture.num_attention_heads}."
        )
    if architecture.alibi == (architecture.rope_theta is not None):
        raise ConfigError(
            f"wrong positions: got rope_theta = {architecture.rope_theta} with alibi = {architecture.alibi}, "
            "need exactly one of the two."
        )
    if not architecture.alibi and architecture.head_dim % 2:
        raise ConfigError(f"wrong head_dim: got {architecture.head_dim}, need an even number for rotary embeddings.")
    if not architecture.norm_epsilon > 0:
        raise ConfigError(f"wrong norm_epsilon: got {architecture.norm_epsilon}, need a number above 0.")
    if architecture.norm_head and architecture.tied_embeddings:
        raise ConfigError("wrong head: got norm_head with tied_embeddings, need at most one of the two.")


def _llama(**sizes: Any) -> Architecture:
    sizes = {
        "family": "llama",
        "norm_epsilon": 1e-5,
        "rope_theta": 1e4,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **sizes,
    }
    return _sized(**sizes)


def _qwen2(**sizes: Any) -> Architecture:
    sizes = {"norm_epsilon": 1e-6, **sizes}
    return _sized(
        family="qwen2",
        rope_theta=1e6,
        max_position_embeddings=131072,
        vocab_size=152064,
        qkv_bias=True,
        bos_token_id=151643,
        eos_token_id=151643,
        **sizes,
    )


def _baichuan2(**sizes: Any) -> Architecture:
    return _sized(
        family="baichuan2",
        norm_epsilon=1e-6,
        max_position_embeddings=4096,
        vocab_size=125696,
        norm_head=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **sizes,
    )


def _sized(*, layers: int, hidden: int, ffn: int, heads: int, groups: int | None = None, **others: Any) -> Architecture:
    return Architecture(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=groups or heads,
        head_dim=hidden // heads,
        **others,
    )


PRESETS: Mapping[str, Architecture] = {
    "toy": _llama(
        layers=2,
        hidden=192,
        ffn=512,
        heads=6,
        groups=2,
        vocab_size=3072,
        norm_epsilon=1e-6,
        max_position_embeddings=2048,
    ),
    "baichuan2-7b": _baichuan2(layers=32, hidden=4096, ffn=11008, heads=32, rope_theta=1e4),
    "baichuan2-13b": _baichuan2(layers=40, hidden=5120, ffn=13696, heads=40, rope_theta=None, alibi=True),
    "yi-34b": _llama(
        layers=60, hidden=7168, ffn=20480, heads=56, groups=8, vocab_size=64000, rope_theta=5e6, pad_token_id=0
    ),
    "llama-2-7b": _llama(layers=32, hidden=4096, ffn=11008, heads=32, vocab_size=32000),
    "llama-2-13b": _llama(layers=40, hidden=5120, ffn=13824, heads=40, vocab_size=32000),
    "llama-3-8b": _llama(
        layers=32,
        hidden=4096,
        ffn=14336,
        heads=32,
        groups=8,
        vocab_size=128256,
        rope_theta=5e5,
        max_position_embeddings=8192,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    "qwen2.5-7b": _qwen2(layers=28, hidden=3584, ffn=18944, heads=28, groups=4),
    "qwen2.5-14b": _qwen2(layers=48, hidden=5120, ffn=13824, heads=40, groups=8, norm_epsilon=1e-5),
}
"""Known backbones by name, as the config.json files of the published base models give them (Qwen2.5-14B-Instruct has
another norm_epsilon); `toy` is the size of the demo."""


def get_preset(name: str) -> Architecture:
    """Raises: ConfigError naming the presets that exist."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset: got {name!r}, need one of {', '.join(PRESETS)} (key model.preset).")
    return PRESETS[name]
