"""Floating-point operations of training and the peak rates they are held against.

Model FLOPs count the arithmetic of one forward and backward pass, 2 per multiply-add, and no recomputation:

    FLOPs per token = 6 · N + 12 · num_attention_heads · head_dim · Σ over layers of min(seq_length, window)

N are the weights that take part in a matrix product: all but the input embedding (with tied embeddings it counts, as the
output). The second term is attention over whole rows with causal masking *not* subtracted (PaLM, appendix B; Megatron-LM
counts alike); packed rows do less, and no logits are computed where nothing is trained (`model/gpt.py`), so figures for short documents
are a convention, not work done.
"""

from __future__ import annotations

from megatron_huatuo.models.architecture import Architecture

PEAK_BF16_FLOPS_PER_S = {
    "A100": 312e12,
    "A800": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
}
"""Dense bf16 matrix rates from the vendor's data sheets, without sparsity; longer names are matched first."""


def count_parameters(architecture: Architecture) -> int:
    """All weights of a model. Example: Baichuan2-7B has 7,505,973,248."""
    embedding = architecture.vocab_size * architecture.hidden_size
    output = 0 if architecture.tied_embeddings else embedding
    norms = architecture.num_layers * _norm_parameters(architecture) + architecture.hidden_size
    return embedding + output + norms + architecture.num_layers * _layer_parameters(architecture)


def _norm_parameters(architecture: Architecture) -> int:
    """Norms of one layer: two or four of the hidden state, and those of queries and keys."""
    of_hidden = 4 if architecture.post_norms else 2
    return of_hidden * architecture.hidden_size + (2 * architecture.head_dim if architecture.qk_norm else 0)


def _layer_parameters(architecture: Architecture) -> int:
    """Matrices and biases of one layer, norms left out."""
    query = architecture.num_attention_heads * architecture.head_dim
    key_value = 2 * architecture.num_query_groups * architecture.head_dim
    attention = architecture.hidden_size * (2 * query + key_value)
    bias = query + key_value if architecture.qkv_bias else 0
    return attention + bias + 3 * architecture.hidden_size * architecture.ffn_hidden_size


def flops_per_token(architecture: Architecture, seq_length: int) -> float:
    """Model FLOPs of training on one token in rows of `seq_length` (formula in the module's docstring)."""
    products = (
        architecture.num_layers * _layer_parameters(architecture) + architecture.vocab_size * architecture.hidden_size
    )
    width = architecture.num_attention_heads * architecture.head_dim
    reach = sum(min(seq_length, window or seq_length) for window in architecture.windows())
    return 6.0 * products + 12.0 * width * reach


def peak_flops_per_s(device_name: str) -> float | None:
    """Peak dense bf16 rate of a GPU by the name that torch gives it; None for one that is not in the table."""
    for name in sorted(PEAK_BF16_FLOPS_PER_S, key=len, reverse=True):
        if all(part in device_name for part in name.split()):
            return PEAK_BF16_FLOPS_PER_S[name]
    return None
