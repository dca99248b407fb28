"""Memory of one rank of a training run, computed from its settings alone.

Invariant: weights, gradients and optimizer shards are exact counts of what the engine allocates (tests compare them with
real ranks); activations count what autograd keeps for the backward pass; the reserve is an assumption and named so.

Units are bytes throughout, activations in bytes per token of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.parallel.parallel_config import ParallelConfig
from megatron_huatuo.train.train_config import TrainConfig

# Not computed: CUDA context, NCCL buffers, cuBLAS workspaces; and what the caching allocator cannot use.
RESERVE_BYTES = 3 << 30
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def reserve(self) -> float:
        """Assumed: context, communication buffers and fragmentation."""
        held = self.weights + self.gradients + self.optimizer + self.activations + self.logits
        return RESERVE_BYTES + FRAGMENTATION * held

    @property
    def total(self) -> float:
        """All parts and the reserve."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.reserve


def rank_parameters(architecture: Architecture, tensor_parallel: int, pipeline_parallel: int, stage: int) -> int:
    """Parameters that one rank of pipeline stage `stage` (from 0) holds: matrices are shared, norms are copied."""
    hidden = architecture.hidden_size
    query = architecture.num_attention_heads * architecture.head_dim
    key_value = architecture.num_query_groups * architecture.head_dim
    matrices = hidden * (2 * query + 2 * key_value) + 3 * hidden * architecture.ffn_hidden_size
    biases = query + 2 * key_value if architecture.qkv_bias else 0
    layers = architecture.num_layers // pipeline_parallel
    norms = (4 if architecture.post_norms else 2) * hidden + (2 * architecture.head_dim if architecture.qk_norm else 0)
    held = layers * ((matrices + biases) // tensor_parallel + norms)
    embedding = architecture.vocab_size * hidden // tensor_parallel
    is_first, is_last = stage == 0, stage == pipeline_parallel - 1
    if is_first:
        held += embedding
    if is_last:
        held += hidden
        if not (architecture.tied_embeddings and is_first):  # tied ends on two stages are two copies
            held += embedding
    return held


@dataclass(frozen=True)
class LayerActivations:
    """Bytes per token of one layer: `outside` the matrices (divided by sequence parallelism alone) and `inside` them
    (divided by tensor parallelism)."""

    outside: float
    inside: float

    def on_rank(self, parallel: ParallelConfig) -> float:
        """Bytes per token on one tensor-parallel rank."""
        ranks = parallel.tensor_model_parallel_size
        return self.outside / (ranks if parallel.uses_sequence_parallel else 1) + self.inside / ranks


def layer_activations(
    architecture: Architecture,
    *,
    width: int,
    recompute: str | None = None,
    modules: Sequence[str] = ("core_attn",),
) -> LayerActivations:
    """What the backward pass of one layer needs of the forward pass; `width`: bytes of a value (2 in bf16).

    Norms: input and output each. Attention: queries, keys and values before and after rotation (and before their norms), the context twice (for
    the kernel and for the projection) and the softmax statistics in float32. Gated unit: both halves and their product.
    Selective recomputation of core_attn drops the context and the statistics, of mlp the gated unit; full recomputation
    all but the layer's input. After Korthikanti et al. 2022, section 4, for RMSNorm, a gated unit, flash attention and
    no dropout.
    """
    hidden, heads = architecture.hidden_size, architecture.num_attention_heads
    if recompute == "full":
        return LayerActivations(outside=width * hidden, inside=0.0)
    query, key_value = heads * architecture.head_dim, architecture.num_query_groups * architecture.head_dim
    norms = (4 if architecture.post_norms else 2) * hidden * 2 * width
    rotated = 0 if architecture.alibi else query + key_value
    normalised = query + key_value if architecture.qk_norm else 0
    attention = width * (query + 2 * key_value + normalised + rotated + query)
    again = modules if recompute == "selective" else ()
    if "core_attn" not in again:
        attention += width * query + 4 * heads
    gated_unit = 0 if "mlp" in again else width * 3 * architecture.ffn_hidden_size
    return LayerActivations(outside=norms, inside=attention + gated_unit)


def layers_in_flight(config: TrainConfig, num_layers: int, stage: int, num_microbatches: int) -> float:
    """Layers × micro-batches whose activations a stage holds at its fullest.

    One-forward-one-backward: min(stages - stage, micro-batches) × its layers. Interleaved: (stages - stage - 1) · 2 +
    (chunks - 1) · stages + 1 chunks of its layers / chunks each (Narayanan et al. 2021, section 2.2).
    """
    stages = config.parallel.pipeline_model_parallel_size
    chunks = config.parallel.virtual_pipeline_model_parallel_size or 1
    layers = num_layers / stages
    if chunks == 1:
        return layers * min(stages - stage, num_microbatches)
    warm_up = (stages - stage - 1) * 2 + (chunks - 1) * stages + 1
    return layers / chunks * min(warm_up, chunks * num_microbatches)


def rank_memory(
    config: TrainConfig,
    architecture: Architecture,
    *,
    world_size: int,
    seq_length: int,
    stage: int,
) -> RankMemory:
    """Memory of a rank of one pipeline stage at the fullest moment of a step; `config` is validated."""
    parallel, training = config.parallel, config.training
    tensor_parallel, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    data_parallel = parallel.data_parallel_size(world_size)
    is_bf16 = training.precision == "bf16"
    width = 2 if is_bf16 else 4
    parameters = rank_parameters(architecture, tensor_parallel, stages, stage)
    tokens = training.micro_batch_size * seq_length
    num_microbatches = training.global_batch_size // (training.micro_batch_size * data_parallel)

    recompute = training.recompute_granularity
    kept = layer_activations(
        architecture,
        width=width,
        recompute=recompute,
        modules=training.recompute_modules,
    )
    in_flight = layers_in_flight(config, architecture.num_layers, stage, num_microbatches)
    per_token = kept.on_rank(parallel) * in_flight
    if recompute == "full":  # one input a block, and one block that is computed again
        whole = layer_activations(architecture, width=width)
        per_token = per_token / training.recompute_num_layers + training.recompute_num_layers * whole.on_rank(parallel)
    # While a layer is differentiated: gradients inside its gated unit, and an input gathered from the other ranks.
    per_token += width * (3 * architecture.ffn_hidden_size / tensor_parallel + 2 * architecture.hidden_size)
    return RankMemory(
        weights=(width + (2 if training.fp8 else 0)) * parameters,  # in fp8 also a copy and its transpose
        gradients=4.0 * parameters,  # reduced and kept in float32
        optimizer=(12.0 if is_bf16 else 8.0) * parameters / data_parallel,  # float32 weights and two moments
        activations=tokens * per_token,
        logits=_logits(architecture, tokens, tensor_parallel, width) if stage == stages - 1 else 0.0,
    )


def _logits(architecture: Architecture, tokens: int, tensor_parallel: int, width: int) -> float:
    """Output layer at its fullest: logits, their float32 copy and its exponentials; and NormHead's unit rows with
    their gradient."""
    per_token = (width + 4 + 4) * architecture.vocab_size
    rows = 2 * width * architecture.vocab_size * architecture.hidden_size if architecture.norm_head else 0
    return (tokens * per_token + rows) / tensor_parallel
