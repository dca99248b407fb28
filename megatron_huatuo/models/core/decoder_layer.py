"""A decoder layer that knows its kind: local or global positions, and norms behind attention and the gated unit.

Invariant: a layer's kind follows from its global number, so every pipeline layout computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.transformer.utils import is_layer_window_attention


def layer_window(config: TransformerConfig, layer_number: int) -> int | None:
    """Tokens that a token of this layer attends to, itself included; None for a global layer.

    layer_number: from 1, over all pipeline stages. megatron-core's window_size counts the tokens before the own one.
    """
    if not is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number):
        return None
    assert config.window_size is not None
    return int(config.window_size[0]) + 1


class DecoderLayer(TransformerLayer):
    """megatron-core's layer with what Gemma 3 adds to it."""

    def __init__(
        self, config: TransformerConfig, *others: Any, post_norm: Callable[..., Any] | None = None, **settings: Any
    ) -> None:
        """post_norm: class of the norms behind attention and the gated unit; None where there are none."""
        super().__init__(config, *others, **settings)
        self.is_local = layer_window(config, self.layer_number) is not None
        if post_norm is not None:
            sizes = {"config": config, "hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
            self.post_attention_layernorm = post_norm(**sizes)
            self.post_feedforward_layernorm = post_norm(**sizes)
            add = self.submodules_config
            self.self_attn_bda = _after(self.post_attention_layernorm, build_module(add.self_attn_bda))
            self.mlp_bda = _after(self.post_feedforward_layernorm, build_module(add.mlp_bda))

    def forward(self, *inputs: Any, rotary_pos_emb: torch.Tensor | None = None, **others: Any) -> Any:
        """As TransformerLayer.forward. rotary_pos_emb float32 [s, 1, 1, d], or [2, s, 1, 1, d]: of global and of local
        layers."""
        if rotary_pos_emb is not None and rotary_pos_emb.dim() == 5:
            rotary_pos_emb = rotary_pos_emb[int(self.is_local)]
        return super().forward(*inputs, rotary_pos_emb=rotary_pos_emb, **others)


def _after(norm: Callable[[torch.Tensor], torch.Tensor], add: Callable[..., Any]) -> Callable[..., Any]:
    """megatron-core's residual addition (`add(training, fused)` makes the function), the output normalised first."""

    def build(training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        add_to = add(training, fused)

        def run(output_with_bias: tuple[torch.Tensor, None], residual: torch.Tensor, dropout: float) -> torch.Tensor:
            output, bias = output_with_bias
            summed: torch.Tensor = add_to((norm(output), bias), residual, dropout)
            return summed

        return run

    return build
