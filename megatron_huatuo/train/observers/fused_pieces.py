"""Which fused kernels a run has, and why it lacks the others: said once at its start."""

from __future__ import annotations

from megatron.core.optimizer import distrib_optimizer

from megatron_huatuo.models.core.attention_backend import engine_obstacle, import_obstacle
from megatron_huatuo.models.core.gpt import PackedGPTModel

_NO_GPU = "the run is on the CPU"
_ROUNDS = "it rounds gradients to bf16 and adds them in any order: not for fp32 or runtime.deterministic"
_APEX_ADAM = "apex.optimizers"


def fused_pieces(chunk: PackedGPTModel, device: str) -> dict[str, str | None]:
    """{piece: None when it is used, else the reason why not}.

    chunk: as built. device: "cpu" or "cuda".
    """
    config = chunk.config
    no_gpu = None if device == "cuda" else _NO_GPU
    no_engine = no_gpu or engine_obstacle()
    no_layers = no_gpu or chunk.engine_layers_obstacle
    return {
        "fused RMSNorm and linear layers (Transformer Engine)": no_layers,
        "fp8 matrix products": no_layers or _unless(config.fp8 is not None, "training.fp8 is null"),
        "fused SwiGLU": _unless(config.bias_activation_fusion, _NO_GPU),
        "fused RoPE": "this backbone has no RoPE"
        if chunk.position_embedding_type == "none"
        else _unless(config.apply_rope_fusion, no_engine),
        "fused cross-entropy": _unless(config.cross_entropy_loss_fusion, no_gpu or _ROUNDS),
        "fused gradient accumulation of the layers": _unless(
            config.gradient_accumulation_fusion or no_layers is None,
            no_gpu or "it needs Transformer Engine's layers or NVIDIA apex",
        ),
        "fused gradient accumulation of the output layer": _unless(
            config.gradient_accumulation_fusion,
            no_gpu or f"{import_obstacle('fused_weight_gradient_mlp_cuda')}, a part of NVIDIA apex",
        ),
        "fused Adam": _unless(
            distrib_optimizer.HAVE_APEX_OR_TE,
            f"{no_gpu or f'{no_engine}, {import_obstacle(_APEX_ADAM)}'}; torch's AdamW runs",
        ),
    }


def _unless(present: bool, reason: str | None) -> str | None:
    return None if present else reason
