"""Which fused kernels a run has, and why it lacks the others: said once at its start."""

from __future__ import annotations

from megatron.core.optimizer import distrib_optimizer
from megatron.core.tensor_parallel import layers as mcore_layers
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_huatuo.model.attention_backend import has_transformer_engine

_NO_GPU = "the run is on the CPU"
_NO_TE = "Transformer Engine is not installed"


def fused_pieces(config: TransformerConfig, device: str) -> dict[str, str | None]:
    """{piece: None when it is used, else the reason why not}.

    config: of a model chunk, as built. device: "cpu" or "cuda".
    """
    on_gpu = device == "cuda"
    needs_te = None if has_transformer_engine() and on_gpu else _NO_TE if on_gpu else _NO_GPU
    accumulates = mcore_layers._grad_accum_fusion_available
    return {
        "fused RMSNorm and linear layers (Transformer Engine)": needs_te,
        "fp8 matrix products": _unless(config.fp8 is not None, needs_te or "training.fp8 is null"),
        "fused SwiGLU": _unless(config.bias_activation_fusion, _NO_GPU),
        "fused RoPE": _unless(config.apply_rope_fusion, needs_te or "this backbone has no RoPE"),
        "fused cross-entropy": _unless(config.cross_entropy_loss_fusion, _NO_GPU),
        "fused gradient accumulation": _unless(
            config.gradient_accumulation_fusion,
            _NO_GPU if not on_gpu else "NVIDIA apex is not installed" if not accumulates else "it is switched off",
        ),
        "fused Adam": _unless(
            distrib_optimizer.HAVE_APEX_OR_TE,
            "neither Transformer Engine nor NVIDIA apex is installed; torch's AdamW runs",
        ),
    }


def _unless(present: bool, reason: str) -> str | None:
    return None if present else reason
