"""Bytes that one rank sends in a step, by purpose, computed from the settings alone.

Counted as NCCL's rings send: an all-gather or reduce-scatter of a message over n ranks takes (n - 1) / n of it, an all-reduce
twice that, a transfer to the next stage all of it. train/rehearsal.py counts the same on the engine itself.
"""

from __future__ import annotations

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.plan.memory import rank_parameters
from megatron_huatuo.train.train_config import TrainConfig


def rank_volumes(
    config: TrainConfig, architecture: Architecture, *, world_size: int, seq_length: int, stage: int
) -> dict[str, float]:
    """{tensor_parallel, pipeline, data_parallel, embedding: bytes} of a rank of one pipeline stage; `config` is validated."""
    parallel, training = config.parallel, config.training
    ranks, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    copies = parallel.data_parallel_size(world_size)
    micro_batches = training.global_batch_size // (training.micro_batch_size * copies)
    tokens = training.micro_batch_size * seq_length
    width = 2 if training.precision == "bf16" else 4
    message = width * tokens * architecture.hidden_size
    parameters = rank_parameters(architecture, ranks, stages, stage)
    chunks = parallel.virtual_pipeline_model_parallel_size or 1
    sends = chunks * ((stage < stages - 1) + (stage > 0)) if chunks == 1 else 2 * chunks - (stage in (0, stages - 1))
    return {
        "tensor_parallel": _tensor_parallel(config, architecture, message, tokens, micro_batches, stage),
        "pipeline": micro_batches * sends * message / (ranks if parallel.uses_sequence_parallel else 1),
        # Gradients are scattered in float32, weights gathered.
        "data_parallel": (4 + width) * parameters * (copies - 1) / copies,
        "embedding": _tied_ends(architecture, ranks, stages, stage),
    }


def _tensor_parallel(
    config: TrainConfig, architecture: Architecture, message: int, tokens: int, micro_batches: int, stage: int
) -> float:
    parallel = config.parallel
    ranks, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    split = parallel.uses_sequence_parallel
    layers = architecture.num_layers // stages
    # One way over the ring. Forward 2 gathers and 2 scatters or 2 all-reduces; backward the same, and inputs gathered again.
    messages = float(layers * ((10 if split else 8) + _again(config)))
    is_first, is_last = stage == 0, stage == stages - 1
    if is_first:
        messages += 2
    if is_last:  # gathered for the head, whose gradient of the input is an all-reduce
        messages += 3 if split else 2
    of_pass = messages * message + (3 * 2 * 4 * tokens if is_last else 0)  # maximum, target and sum of the loss
    copied = _copied_norms(architecture, layers, is_last=is_last, split=split)
    return (micro_batches * of_pass + 2 * 4 * copied) * (ranks - 1) / ranks


def _again(config: TrainConfig) -> int:
    """Messages of the forward work that a layer repeats."""
    training = config.training
    if training.recompute_granularity == "full":
        return 4
    return 2 if training.recompute_granularity == "selective" and "mlp" in training.recompute_modules else 0


def _copied_norms(architecture: Architecture, layers: int, *, is_last: bool, split: bool) -> int:
    """Weights of norms whose gradients the ranks add up: all where sequences are split, those of heads always."""
    of_layer = 2 * architecture.head_dim if architecture.qk_norm else 0
    if split:
        of_layer += (4 if architecture.post_norms else 2) * architecture.hidden_size
    return layers * of_layer + (architecture.hidden_size if is_last and split else 0)


def _tied_ends(architecture: Architecture, ranks: int, stages: int, stage: int) -> float:
    """An embedding that is the output layer too has a copy on the first and one on the last stage."""
    if not architecture.tied_embeddings or stages == 1 or stage not in (0, stages - 1):
        return 0.0
    return 4.0 * architecture.vocab_size * architecture.hidden_size / ranks
