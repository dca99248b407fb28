"""Baichuan2 (7B with rotary positions, 13B with ALiBi) for current transformers.

This one file is copied into an exported model and loaded with `trust_remote_code=True`; it needs torch and transformers
and nothing else. The published Python files of Baichuan2 work with old releases of transformers only, and overwrite the
output weight at the first evaluation; here no weight is ever changed. Written for megatron_huatuo, Apache-2.0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class BaichuanConfig(PretrainedConfig):
    """Settings of Baichuan2; the published ones name no position embedding and mean ALiBi without a maximum."""

    model_type = "baichuan"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        vocab_size=125696,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=None,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        rope_theta=10000.0,
        position_embedding=None,
        use_cache=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.rope_theta = rope_theta
        self.position_embedding = position_embedding or ("alibi" if max_position_embeddings is None else "rope")
        self.use_cache = use_cache
        super().__init__(pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)


def alibi_slopes(num_heads: int, device: torch.device) -> torch.Tensor:
    """Slopes [num_heads]: 2^(-8k/p), k = 1 … p, for p heads (a power of two), then every second one of 2p."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * k / power) for k in range(1, power + 1)]
    slopes += [2.0 ** (-8 * k / (2 * power)) for k in range(1, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [b, n, s, d] with cos and sin [b, 1, s, d]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class BaichuanRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),), self.weight, self.eps)


class BaichuanAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden, bias, rotary, cache):
        batch, length, size = hidden.shape
        packed = self.W_pack(hidden).view(batch, length, 3, self.num_heads, size // self.num_heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        # Scores and biases are summed in float32: in bfloat16 ALiBi would lose the distance of far tokens.
        scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.size(-1)) + bias
        context = scores.softmax(dim=-1).to(value.dtype) @ value
        return self.o_proj(context.transpose(1, 2).reshape(batch, length, size))


class BaichuanMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class BaichuanLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer_idx)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden, bias, rotary, cache):
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), bias, rotary, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class BaichuanPreTrainedModel(PreTrainedModel):
    config_class = BaichuanConfig
    base_model_prefix = "model"
    _no_split_modules = ["BaichuanLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012


class BaichuanModel(BaichuanPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(BaichuanLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def _bias(self, length: int, past: int, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Causal mask, padding mask and ALiBi in one: float32 [b or 1, n or 1, length, past + length]."""
        device = self.embed_tokens.weight.device
        column = torch.arange(past + length, device=device)
        distance = (column[None, :] - column[past:, None]).float()
        bias = torch.zeros_like(distance)[None, None]
        if self.config.position_embedding == "alibi":
            slopes = alibi_slopes(self.config.num_attention_heads, device)
            bias = (slopes[:, None, None] * distance)[None]
        hidden = (distance > 0)[None, None]
        if attention_mask is not None:
            hidden = hidden | (attention_mask[:, None, None, :] == 0)
        # Finite, so that the rows of padding, which see nothing, do not become NaN.
        return bias.masked_fill(hidden, torch.finfo(torch.float32).min)

    def _rotary(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.config.position_embedding == "alibi":
            return None
        size = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=position_ids.device) / size
        angles = position_ids[:, None, :, None].float() / self.config.rope_theta**exponents
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values: Cache | None = None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        length = hidden.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=hidden.device)[None]
        bias, rotary = self._bias(length, past, attention_mask), self._rotary(position_ids, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, bias, rotary, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class NormHead(nn.Module):
    """Logits from vocabulary rows of unit length."""

    def __init__(self, hidden_size, vocab_size):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, hidden):
        return F.linear(hidden, F.normalize(self.weight))


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def forward(self, input_ids=None, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids=input_ids, **kwargs)
        kept = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)
