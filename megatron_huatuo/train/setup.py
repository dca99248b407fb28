"""Model, optimizer and schedule of a run, on the groups that exist.

Invariant: what a rank holds follows from the configuration and its place alone; first weights come from a checkpoint, a
Hugging Face directory, or the seed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.attention_backend import TRANSFORMER_ENGINE_BACKEND
from megatron_huatuo.models.core.build_model import build_model
from megatron_huatuo.models.core.gpt import PackedGPTModel
from megatron_huatuo.parallel.core_versions import wrap_data_parallel
from megatron_huatuo.parallel.parallel_config import ParallelConfig
from megatron_huatuo.train.first_weights import load_first_weights
from megatron_huatuo.train.observers.clock import StepClock
from megatron_huatuo.train.train_config import TrainConfig

# Parameters of a bucket of gradients, at least. Checkpoints in the old format hold the optimizer bucket by bucket, so the size
# follows neither from the number of data-parallel ranks nor from what overlaps: both may change on resume.
BUCKET_SIZE = 40_000_000


@dataclass
class Training:
    """What a rank trains with. `chunks` are the bare models, `wrapped` the same under DistributedDataParallel."""

    architecture: Architecture
    chunks: list[PackedGPTModel]
    wrapped: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    clock: StepClock


def build_training(
    config: TrainConfig,
    architecture: Architecture,
    device: torch.device,
    span: int,
    *,
    first_weights: bool = True,
) -> Training:
    """Build everything with first weights in place; `span`: steps of the learning-rate schedule.

    first_weights: load model.init_from; a run that resumes does not need it.
    """
    _seed(config)
    chunks = build_chunks(config, architecture, device)
    if first_weights and config.model.init_from is not None:
        load_first_weights(config.model.init_from, chunks, architecture)
    wrapped = _wrap(config, chunks, device)
    optimizer = get_megatron_optimizer(_optimizer_config(config), wrapped)
    if device.type == "cpu":  # torch's AdamW in one pass over memory
        for group in optimizer.param_groups:
            group["fused"] = True
    clock = StepClock(device)
    for chunk in wrapped:
        _connect(chunk.config, wrapped, optimizer, config.parallel, clock)
    return Training(architecture, chunks, wrapped, optimizer, build_schedule(config, optimizer, span), clock)


def _seed(config: TrainConfig) -> None:
    torch.manual_seed(config.training.seed)
    tensor_parallel.random.model_parallel_cuda_manual_seed(config.training.seed)
    if config.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"  # Transformer Engine's attention
        torch.use_deterministic_algorithms(True)  # torch, and attention_flash


def _recompute(config: TrainConfig) -> dict[str, Any]:
    granularity = config.training.recompute_granularity
    if granularity == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": config.training.recompute_num_layers,
        }
    if granularity == "selective":
        return {
            "recompute_granularity": "selective",
            "recompute_modules": list(config.training.recompute_modules),
        }
    return {}


def _fp8(config: TrainConfig) -> dict[str, Any]:
    """For the layers: the head is none of Transformer Engine's and stays in bf16, and so do the stored weights."""
    training = config.training
    return {"fp8": training.fp8, "fp8_recipe": training.fp8_recipe} if training.fp8 is not None else {}


def build_chunks(config: TrainConfig, architecture: Architecture, device: torch.device) -> list[PackedGPTModel]:
    """The bare model chunks of this rank: one, or one a virtual pipeline stage."""
    parallel = config.parallel
    virtual = parallel.virtual_pipeline_model_parallel_size
    settings: dict[str, Any] = {
        "attention": config.model.attention,
        "precision": config.training.precision,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual,
        "sequence_parallel": parallel.uses_sequence_parallel,
        "use_cpu_initialization": device.type == "cpu",
        "perform_initialization": config.model.init_from is None,
        "calculate_per_token_loss": True,
        "tp_comm_overlap": parallel.tp_comm_overlap,
        "deterministic_mode": config.runtime.deterministic and device.type == "cuda",
        # With virtual stages the defaults train wrongly and silently: forward is right, losses are not.
        "overlap_p2p_comm": virtual is not None,
        "batch_p2p_comm": virtual is None,
        # Without virtual stages, as Megatron-LM: no wait for the device after each transfer, outputs freed once they are sent.
        "batch_p2p_sync": virtual is not None,
        "deallocate_pipeline_outputs": virtual is None,
        **_recompute(config),
        **_fp8(config),
    }
    chunks: list[PackedGPTModel] = []
    for stage in range(virtual or 1):
        vp_stage = stage if virtual else None
        chunk = build_model(
            architecture,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=virtual is None, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=virtual is None, vp_stage=vp_stage),
            vp_stage=vp_stage,
            **settings,
        )
        chunks.append(chunk.to(device))
    if chunks[0].attention_backend == TRANSFORMER_ENGINE_BACKEND:
        # Where no fused kernel fits, Transformer Engine shall refuse instead of falling back to one that stores all scores.
        # Set before the model is built, it trips an assertion of megatron-core.
        os.environ["NVTE_UNFUSED_ATTN"] = "0"
    return chunks


def _wrap(config: TrainConfig, chunks: list[PackedGPTModel], device: torch.device) -> list[DistributedDataParallel]:
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=True,  # without it megatron-core makes one bucket of all parameters
        overlap_param_gather=config.parallel.overlap_param_gather,
        bucket_size=BUCKET_SIZE,
    )
    wrapped = []
    for index, chunk in enumerate(chunks):
        model = Float16Module(chunk.config, chunk) if config.training.precision == "bf16" else chunk
        # Buckets of later chunks are not split: their gradients come first, when there is nothing to overlap with.
        wrapped.append(wrap_data_parallel(chunk.config, ddp_config, model, disable_bucketing=index > 0))
        fuse_weight_gradients(chunk)
    ddp_config.overlap_grad_reduce = config.parallel.overlap_grad_reduce  # is read anew in each step
    for chunk in wrapped:
        chunk.broadcast_params()
    return wrapped


def fuse_weight_gradients(chunk: torch.nn.Module) -> None:
    """Let Transformer Engine's layers add the gradients of their weights to the buffer in the matrix product itself.

    megatron-core has one setting for them and for its own output layer, and refuses it without apex, which only the
    output layer needs. The buffer is DistributedDataParallel's `main_grad`, so a bare model keeps what it was built with.
    """
    for module in chunk.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True  # type: ignore[assignment]


def _optimizer_config(config: TrainConfig) -> OptimizerConfig:
    settings = config.optimizer
    bf16 = config.training.precision == "bf16"
    return OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=config.schedule.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=True,
        overlap_param_gather=config.parallel.overlap_param_gather,
    )


def _connect(
    model_config: Any,
    wrapped: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    parallel: ParallelConfig,
    clock: StepClock,
) -> None:
    """Give megatron-core's schedules the functions that they call."""
    model_config.grad_scale_func = optimizer.scale_loss
    model_config.finalize_model_grads_func = clock.reduce_gradients
    if parallel.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in wrapped]
        model_config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]


def build_schedule(config: TrainConfig, optimizer: MegatronOptimizer, span: int) -> OptimizerParamScheduler:
    """megatron-core's schedule over `span` steps (`ScheduleConfig.span`); it stands at step 0."""
    schedule = config.schedule
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.optimizer.lr,
        min_lr=schedule.min_lr,
        lr_warmup_steps=schedule.warmup_steps(span),
        lr_decay_steps=span,
        lr_decay_style={"wsd": "WSD"}.get(schedule.style, schedule.style),
        wsd_decay_steps=schedule.wsd_steps(span),
        lr_wsd_decay_style="linear",
        start_wd=config.optimizer.weight_decay,
        end_wd=config.optimizer.weight_decay,
        wd_incr_steps=span,
        wd_incr_style="constant",
    )


def is_log_rank() -> bool:
    """Rank 0 writes the logs; it gets the losses of the last pipeline stage in the step's one reduction."""
    return dist.get_rank() == 0
