"""Build an Architecture as a GPTModel of megatron-core.

Invariant: the weights have the names and shapes that `hf.mapping` knows, on every layout; nothing here wraps the model
for data parallelism or starts process groups.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import layers as mcore_layers
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.attention_backend import (
    choose_backend,
    core_attention,
    engine_layers_obstacle,
    has_transformer_engine,
)
from megatron_huatuo.models.core.decoder_layer import DecoderLayer
from megatron_huatuo.models.core.gpt import PackedGPTModel
from megatron_huatuo.models.core.norm import RMSNorm
from megatron_huatuo.models.core.norm_head import NormHead
from megatron_huatuo.models.core.rotary import RowRotaryEmbedding

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformer_config(
    architecture: Architecture,
    *,
    precision: str = "fp32",
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    virtual_pipeline_model_parallel_size: int | None = None,
    sequence_parallel: bool = False,
    use_cpu_initialization: bool = True,
    perform_initialization: bool = True,
    **overrides: Any,
) -> TransformerConfig:
    """megatron-core's configuration for an architecture and a layout; `overrides` are fields of TransformerConfig.

    Raises: ConfigError for an unknown precision or a vocabulary that the tensor-parallel ranks do not divide.
    """
    if precision not in _DTYPES:
        raise ConfigError(f"wrong precision: got {precision!r}, need one of {', '.join(_DTYPES)}.")
    if architecture.vocab_size % tensor_model_parallel_size:
        fitting = ", ".join(str(size) for size in range(1, 65) if architecture.vocab_size % size == 0)
        raise ConfigError(
            f"wrong tensor_model_parallel_size: got {tensor_model_parallel_size}, need a divisor of the vocabulary's "
            f"{architecture.vocab_size} rows: {fitting}. Vocabularies are never padded (docs/conversion.md)."
        )
    settings: dict[str, Any] = {
        "num_layers": architecture.num_layers,
        "hidden_size": architecture.hidden_size,
        "ffn_hidden_size": architecture.ffn_hidden_size,
        "num_attention_heads": architecture.num_attention_heads,
        "num_query_groups": architecture.num_query_groups,
        "kv_channels": architecture.head_dim,
        "layernorm_epsilon": architecture.norm_epsilon,
        "add_qkv_bias": architecture.qkv_bias,
        "init_method_std": architecture.initializer_range,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        # megatron-core's fused gated unit takes F.gelu for the approximation by tanh.
        "activation_func": F.gelu if architecture.activation == "gelu_tanh" else F.silu,
        "qk_layernorm": architecture.qk_norm,
        "layernorm_zero_centered_gamma": architecture.zero_centered_norms,
        "softmax_scale": None if (scalar := architecture.query_pre_attn_scalar) is None else scalar**-0.5,
        **_windows(architecture),
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": _DTYPES[precision],
        "pipeline_dtype": _DTYPES[precision],
        "bf16": precision == "bf16",
        "tensor_model_parallel_size": tensor_model_parallel_size,
        "pipeline_model_parallel_size": pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual_pipeline_model_parallel_size,
        "sequence_parallel": sequence_parallel,
        "use_cpu_initialization": use_cpu_initialization,
        "perform_initialization": perform_initialization,
        "masked_softmax_fusion": False,
        **_fusions(precision, is_deterministic=overrides.get("deterministic_mode", False)),
    }
    config = TransformerConfig(**(settings | overrides))
    if config.activation_func is F.gelu and not config.bias_activation_fusion:
        raise ConfigError("wrong bias_activation_fusion: got False, need True: unfused, GELU is not approximated.")
    return config


def _windows(architecture: Architecture) -> dict[str, Any]:
    """megatron-core's window_size counts the tokens before the own one; 1 in the list marks a local layer."""
    if architecture.sliding_window is None:
        return {}
    is_local = [int(window is not None) for window in architecture.windows()]
    return {"window_size": (architecture.sliding_window - 1, 0), "window_attn_skip_freq": is_local}


def _fusions(precision: str, *, is_deterministic: bool) -> dict[str, bool]:
    """Compiled pieces pay on GPUs. On a CPU they cost 7 to 31 s at the first step and move gradient norms by 3e-5, so
    there they are off; the others have a stand-in in `cpu_kernels`. The fused cross-entropy gives the gradients of logits
    in bf16, and adds atomically: neither for fp32 nor where every bit must come again."""
    on_gpu = _device() == "cuda"
    return {
        "bias_activation_fusion": True,
        "bias_dropout_fusion": on_gpu,
        "cross_entropy_loss_fusion": on_gpu and precision == "bf16" and not is_deterministic,
        "apply_rope_fusion": not on_gpu or has_transformer_engine(),
        "gradient_accumulation_fusion": mcore_layers._grad_accum_fusion_available,
    }


def _device() -> str:
    """ "cpu" where there is no CUDA, or where `host.enable_host()` sends its name to the CPU; else "cuda"."""
    return torch.device(torch.cuda.current_device()).type if torch.cuda.is_available() else "cpu"


def build_model(
    architecture: Architecture,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    attention: str = "auto",
    **settings: Any,
) -> PackedGPTModel:
    """One model chunk of this rank; megatron-core's process groups must exist.

    pre_process, post_process: whether the chunk holds the embedding, and the final norm with the output layer.
    attention: backend, one of `attention_backend.BACKENDS`.
    settings: as for `transformer_config`.

    With `labels` the model gives losses float32 [b, s], without them logits [b, s, vocab_size / TP].
    """
    config = transformer_config(architecture, **settings)
    device, precision = _device(), "bf16" if config.bf16 else "fp32"
    backend = choose_backend(attention, device=device, alibi=architecture.alibi, precision=precision)
    obstacle = engine_layers_obstacle(device, precision)
    with_rope = not architecture.alibi
    model = PackedGPTModel(
        config,
        _block_spec(architecture, config, vp_stage, backend, of_engine=obstacle is None),
        vocab_size=architecture.vocab_size,
        max_sequence_length=architecture.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        position_embedding_type="rope" if with_rope else "none",
        rotary_base=architecture.rope_theta,
        vp_stage=vp_stage,
    )
    if with_rope:
        model.rotary_pos_emb = RowRotaryEmbedding(
            architecture.head_dim,
            rotary_percent=1.0,
            rotary_base=architecture.rope_theta,
            scaling=architecture.rope_scaling,
            factor=architecture.rope_factor,
            local_base=architecture.local_rope_theta,
            use_cpu_initialization=config.use_cpu_initialization,
        )
    if architecture.scaled_embedding and pre_process:
        # Rounded as the embedding is: 33.94 is 34 in bfloat16.
        scale = torch.tensor(architecture.hidden_size**0.5, dtype=config.params_dtype).item()
        model.embedding.register_forward_hook(lambda module, inputs, embeddings: embeddings * scale)
    if architecture.norm_head and post_process:
        model.output_layer = NormHead.from_linear(model.output_layer)
    model.attention_backend, model.engine_layers_obstacle = backend, obstacle
    _mark_tensor_parallel_weights(model)
    return model


def _mark_tensor_parallel_weights(model: PackedGPTModel) -> None:
    """Without `perform_initialization` megatron-core 0.16 leaves out the marks by which the gradient norm tells a rank's
    own slice from a copy; norms, and so clipping, would be wrong on several tensor-parallel ranks."""
    for module in model.modules():
        dim = {ColumnParallelLinear: 0, NormHead: 0, VocabParallelEmbedding: 0, RowParallelLinear: 1}.get(type(module))
        weight = getattr(module, "weight", None)
        if dim is not None and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=dim, stride=1)


def _block_spec(
    architecture: Architecture, config: TransformerConfig, vp_stage: int | None, backend: str, *, of_engine: bool
) -> TransformerBlockSubmodules:
    layer, norm = _layer_spec(of_engine=of_engine, qk_norm=architecture.qk_norm)
    if architecture.post_norms or architecture.local_rope_theta is not None:
        layer.module = DecoderLayer
        layer.params = {**layer.params, "post_norm": norm if architecture.post_norms else None}
    attention_parts = layer.submodules.self_attention.submodules
    attention_parts.core_attention = core_attention(backend, device=_device(), alibi=architecture.alibi)
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)


def _layer_spec(*, of_engine: bool, qk_norm: bool) -> tuple[ModuleSpec, type]:
    """(layer, final norm): Transformer Engine's, or megatron-core's own with our norm."""
    if of_engine:
        from megatron_huatuo.models.core import transformer_engine

        return transformer_engine.layer_spec(qk_norm=qk_norm), transformer_engine.FinalNorm
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=qk_norm)
    if qk_norm:
        attention_parts = layer.submodules.self_attention.submodules
        attention_parts.q_layernorm = attention_parts.k_layernorm = RMSNorm
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    return layer, RMSNorm
