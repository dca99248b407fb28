"""What a backbone looks like, apart from its weights.

Invariant: an `Architecture` describes a model that `models.core.build_model` can build exactly; a setting that it cannot hold
is refused by name when the description is read, never dropped.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_huatuo.errors import ConfigError, DataError


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
    """Sizes and choices of one decoder-only transformer (RMSNorm, gated linear units, causal)."""

    family: str
    """Name in `models.families`: the Hugging Face layout of its weights and configuration."""
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
    rope_factor: float = 1.0
    """Positions are divided by it (rope_type "linear" of transformers); those of local layers are not."""
    activation: str = "silu"
    """Of the gated linear unit: "silu", or "gelu_tanh", the approximation of GELU by tanh."""
    qk_norm: bool = False
    """Queries and keys of each head are normalised before the rotation."""
    zero_centered_norms: bool = False
    """All norms multiply by 1 + weight."""
    post_norms: bool = False
    """The outputs of attention and of the gated linear unit are normalised before they are added."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of hidden_size."""
    query_pre_attn_scalar: float | None = None
    """Attention scores are divided by its square root; None: head_dim."""
    sliding_window: int | None = None
    """Tokens that a token of a local layer attends to, itself included; None: all layers are global."""
    global_every: int | None = None
    """Layers whose number, from 1, it divides are global; None: with a sliding window all layers are local."""
    local_rope_theta: float | None = None
    """Base of rotary embeddings in local layers; None: as in global ones."""

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    def without_defaults(self) -> dict[str, Any]:
        """Fields that differ from their defaults: a fingerprint of them stays when a later version adds a field."""
        values = self.to_dict()
        return {
            field.name: values[field.name]
            for field in dataclasses.fields(self)
            if field.default is dataclasses.MISSING or getattr(self, field.name) != field.default
        }

    @classmethod
    def of_layers(
        cls, layers: int, hidden: int, ffn: int, heads: int, groups: int | None = None, **others: Any
    ) -> Architecture:
        """By the five sizes that a model's card names. groups: key-value heads, as many as heads by default."""
        sizes = {"num_layers": layers, "hidden_size": hidden, "ffn_hidden_size": ffn, "num_attention_heads": heads}
        return cls(**{**sizes, "num_query_groups": groups or heads, "head_dim": hidden // heads, **others})

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

    def windows(self) -> list[int | None]:
        """Window of each layer; None for a global one.

        Example: 4 layers with sliding_window 512 and global_every 3 have [512, 512, None, 512].
        """
        every = self.global_every or self.num_layers + 1
        return [None if number % every == 0 else self.sliding_window for number in range(1, self.num_layers + 1)]

    def differences(self, other: Architecture) -> list[tuple[str, Any, Any]]:
        """(field, own value, the other's) of all that changes the function which the weights compute."""
        values = ((name, getattr(self, name), getattr(other, name)) for name in self.to_dict())
        return [(name, own, others) for name, own, others in values if own != others and name not in _WITHOUT_EFFECT]


# Lengths are not limited, initial values are replaced, and which ids end a text the tokenizer says.
_WITHOUT_EFFECT = ("max_position_embeddings", "initializer_range", "eos_token_id", "bos_token_id", "pad_token_id")


def _check(architecture: Architecture) -> None:
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
    optional = [name for name in ("sliding_window", "global_every") if getattr(architecture, name) is not None]
    for name in (*sizes, *optional):
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
    if architecture.activation not in ("silu", "gelu_tanh"):
        raise ConfigError(f"wrong activation: got {architecture.activation!r}, need silu or gelu_tanh.")
    if architecture.alibi and architecture.sliding_window is not None:
        raise ConfigError(f"wrong sliding_window: got {architecture.sliding_window} with ALiBi, need none.")
    if architecture.sliding_window is None and (architecture.global_every or architecture.local_rope_theta):
        raise ConfigError(
            f"wrong layers: got global_every = {architecture.global_every} and local_rope_theta = "
            f"{architecture.local_rope_theta} without a sliding_window, need one."
        )
    if architecture.norm_head and architecture.tied_embeddings:
        raise ConfigError("wrong head: got norm_head with tied_embeddings, need at most one of the two.")
