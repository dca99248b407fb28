"""How a model is split over ranks: the settings and their rules.

Invariant: a combination that cannot work is refused before any process group starts, with the values that would.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.errors import ConfigError


@dataclass
class ParallelConfig:
    """Megatron's parallel dimensions. Data parallelism is what is left of the ranks."""

    tensor_model_parallel_size: int = 1
    """Ranks that share each matrix; keep them inside one node."""
    pipeline_model_parallel_size: int = 1
    """Pipeline stages."""
    virtual_pipeline_model_parallel_size: int | None = None
    """Model chunks per stage (interleaved pipeline); null for one."""
    sequence_parallel: bool | None = None
    """Split activations outside the matrices over the tensor-parallel ranks; null: on when there are several."""
    overlap_grad_reduce: bool = False
    """Reduce gradients over data-parallel ranks during the backward pass."""
    overlap_param_gather: bool = False
    """Gather updated parameters during the next forward pass; needs overlap_grad_reduce."""
    tp_comm_overlap: bool = False
    """Overlap tensor-parallel communication with matrix products (Transformer Engine on GPUs only)."""

    @property
    def uses_sequence_parallel(self) -> bool:
        """`sequence_parallel` with its default filled in."""
        return self.tensor_model_parallel_size > 1 if self.sequence_parallel is None else self.sequence_parallel

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Copies of the model among `world_size` ranks. Raises ConfigError when they do not divide."""
        self._check_sizes()
        if world_size % self.model_parallel_size:
            raise ConfigError(
                f"wrong number of ranks: got {world_size}, need a multiple of tensor_model_parallel_size × "
                f"pipeline_model_parallel_size = {self.model_parallel_size}. Start {self.model_parallel_size} or a multiple."
            )
        return world_size // self.model_parallel_size

    def validate(
        self,
        *,
        num_layers: int,
        num_attention_heads: int,
        num_query_groups: int,
        ffn_hidden_size: int,
        vocab_size: int,
        seq_length: int,
        num_microbatches: int,
    ) -> None:
        """Check the split of one model. Raises ConfigError with the values that would work."""
        self._check_sizes()
        tp, pp, vp = (
            self.tensor_model_parallel_size,
            self.pipeline_model_parallel_size,
            self.virtual_pipeline_model_parallel_size,
        )
        divided = {
            "num_attention_heads": num_attention_heads,
            "ffn_hidden_size": ffn_hidden_size,
            "vocab_size": vocab_size,
        }
        for name, value in divided.items():
            if value % tp:
                fitting = [size for size in range(1, 65) if all(other % size == 0 for other in divided.values())]
                raise ConfigError(
                    f"wrong parallel.tensor_model_parallel_size: got {tp}, but {name} is {value}. Use one of {fitting}."
                )
        if num_query_groups % tp and tp % num_query_groups:
            raise ConfigError(
                f"wrong parallel.tensor_model_parallel_size: got {tp}, but there are {num_query_groups} query groups. "
                "Need a divisor or a multiple of them."
            )
        if self.uses_sequence_parallel and tp == 1:
            raise ConfigError(
                "wrong parallel.sequence_parallel: got true with tensor_model_parallel_size 1. Leave it out, or use 2 or more."
            )
        if self.uses_sequence_parallel and seq_length % tp:
            raise ConfigError(
                f"wrong parallel.tensor_model_parallel_size: got {tp}, but rows of {seq_length} tokens do not divide. "
                "Sequence parallelism needs a divisor of seq_length."
            )
        self._validate_pipeline(num_layers, num_microbatches, pp, vp)
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            raise ConfigError("wrong parallel.overlap_param_gather: needs overlap_grad_reduce. Switch both on.")
        if self.tp_comm_overlap and not self.uses_sequence_parallel:
            raise ConfigError(
                "wrong parallel.tp_comm_overlap: needs sequence_parallel. Switch it on, with several ranks."
            )

    def _check_sizes(self) -> None:
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"wrong parallel.{name}: got {getattr(self, name)}, need 1 or more.")

    def _validate_pipeline(self, num_layers: int, num_microbatches: int, pp: int, vp: int | None) -> None:
        if vp is None:
            if num_layers % pp:
                fitting = [size for size in range(1, num_layers + 1) if num_layers % size == 0]
                raise ConfigError(
                    f"wrong parallel.pipeline_model_parallel_size: got {pp}, but there are {num_layers} layers. "
                    f"Use one of {fitting}."
                )
            return
        if pp < 2 or vp < 2:
            raise ConfigError(
                f"wrong parallel.virtual_pipeline_model_parallel_size: got {vp} with {pp} stages, need 2 or more of both. "
                "Leave it out."
            )
        if num_layers % (pp * vp):
            fitting = [size for size in range(2, num_layers // pp + 1) if num_layers % (pp * size) == 0]
            raise ConfigError(
                f"wrong parallel.virtual_pipeline_model_parallel_size: got {vp}, but {num_layers} layers over {pp} stages "
                f"do not divide. Use one of {fitting or 'none: leave it out'}."
            )
        if num_microbatches % pp:
            raise ConfigError(
                f"wrong number of micro-batches for an interleaved pipeline: got {num_microbatches} per step, need a multiple "
                f"of {pp} stages. Change global_batch_size or micro_batch_size."
            )
