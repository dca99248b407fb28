"""One training run as the time model sees it.

Invariant: what a `Workload` holds is what decides a step's time, nothing else. Fields that this engine does not offer
(context parallelism, weights sharded as FSDP does it, unfused pieces) are there because published runs of other systems,
which the model is checked against, have them.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.train.train_config import TrainConfig


@dataclass(frozen=True)
class Workload:
    """Model, batch, layout and kernels of one run."""

    architecture: Architecture
    seq_length: int
    micro_batch_size: int
    num_microbatches: int
    """Of one data-parallel rank a step."""
    data_parallel: int
    attended_length: float
    """Tokens of a document, on average: attention looks no further. seq_length for whole rows."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    chunks: int = 1
    """Model chunks of a pipeline stage."""
    sequence_parallel: bool = True
    """Only looked at with several tensor-parallel ranks."""
    tp_comm_overlap: bool = False
    overlap_grad_reduce: bool = True
    overlap_param_gather: bool = True
    precision: str = "bf16"
    """bf16, fp8 (products of the layers) or fp32."""
    recomputed: tuple[str, ...] = ()
    """Forward work that is done again: core_attn, mlp, or layer for all of it."""
    recomputed_layers: float = 1.0
    """Share of the layers for which it is."""
    context_parallel: int = 1
    """Ranks that share each row."""
    sharded_over: int = 1
    """Ranks over which weights are sharded and gathered for every micro-batch (FSDP); 1: they stay whole."""
    gradient_bytes: int = 4
    """Of one gradient when it is reduced."""
    fused: bool = True
    """Norms, rotation and gated unit in one kernel each."""

    @property
    def gpus(self) -> int:
        """All ranks."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel * self.context_parallel

    @property
    def tokens(self) -> float:
        """Of a micro-batch on one rank, before tensor parallelism divides anything."""
        return self.micro_batch_size * self.seq_length / self.context_parallel

    @property
    def tokens_per_step(self) -> float:
        """Of a global batch."""
        return self.num_microbatches * self.micro_batch_size * self.seq_length * self.data_parallel

    @property
    def outside_division(self) -> int:
        """Ranks that share what lies outside the matrices: those of tensor parallelism, if sequences are split too."""
        return self.tensor_parallel if self.sequence_parallel else 1

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        architecture: Architecture,
        *,
        world_size: int,
        seq_length: int,
        document_tokens: float | None = None,
    ) -> Workload:
        """From a validated configuration; document_tokens: mean length of the blend's documents, None for whole rows."""
        parallel, training = config.parallel, config.training
        data_parallel = parallel.data_parallel_size(world_size)
        isolated = document_tokens is not None and config.data.isolate_documents
        recomputed = {None: (), "selective": tuple(training.recompute_modules), "full": ("layer",)}
        return cls(
            architecture=architecture,
            seq_length=seq_length,
            micro_batch_size=training.micro_batch_size,
            num_microbatches=training.global_batch_size // (training.micro_batch_size * data_parallel),
            data_parallel=data_parallel,
            attended_length=min(document_tokens, seq_length) if isolated and document_tokens else float(seq_length),
            tensor_parallel=parallel.tensor_model_parallel_size,
            pipeline_parallel=parallel.pipeline_model_parallel_size,
            chunks=parallel.virtual_pipeline_model_parallel_size or 1,
            sequence_parallel=parallel.uses_sequence_parallel,
            tp_comm_overlap=parallel.tp_comm_overlap,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            precision="fp8" if training.fp8 else training.precision,
            recomputed=recomputed[training.recompute_granularity],
        )
