"""A run at full size without its machines: one step of a rank of each pipeline stage, on fake tensors.

Models, buffers, optimizer, schedules and collectives are the engine's own; nothing is computed and nothing is sent. Attention and
the gated unit have the shapes of the fused kernels of a GPU, which keep less than the host's, and rows are trained on whole.

Invariant: figures are those of one step with all its micro-batches; only as many are run as the pipeline holds at once. Not in
them: what kernels and communication libraries take for themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import param_and_grad_buffer
from megatron.core.optimizer import clip_grads
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import mlp
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_huatuo.checkpoint.adam_state import give_fresh_state
from megatron_huatuo.dataset.batch import Batch
from megatron_huatuo.parallel.fake_ranks import fake_rank, replaced
from megatron_huatuo.parallel.host import enable_device
from megatron_huatuo.train.setup import Training, build_training
from megatron_huatuo.train.step import train_step
from megatron_huatuo.train.tensor_ledger import TensorLedger
from megatron_huatuo.train.train_config import TrainConfig


@dataclass(frozen=True)
class StageFigures:
    """One rank of a pipeline stage. weights, gradients, optimizer: bytes that it holds all the time; peak: at the fullest moment of
    a step. sent: bytes of a step by purpose (TensorLedger)."""

    stage: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    peak: int
    sent: dict[str, float]


def rehearse(config: TrainConfig, *, world_size: int, seq_length: int) -> list[StageFigures]:
    """Figures of the first rank of each pipeline stage; `config` is validated. The 7B on 8 ranks costs 13 s of CPU time."""
    config = _without_gpu_packages(config)
    enable_device("cpu")
    stages = config.parallel.pipeline_model_parallel_size
    data_parallel = config.parallel.data_parallel_size(world_size)
    count = config.training.global_batch_size // (config.training.micro_batch_size * data_parallel)
    found = []
    for stage in range(stages):
        with (
            fake_rank(config.parallel, stage * (world_size // stages), world_size),
            FakeTensorMode(allow_non_fake_inputs=True),
        ):
            found.append(figures_of_rank(config, seq_length, count, _enough_microbatches(config, count)))
    return found


def _without_gpu_packages(config: TrainConfig) -> TrainConfig:
    """What only packages for GPUs have is left out: fp8 and overlapped tensor parallelism."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, attention="auto"),
        parallel=dataclasses.replace(config.parallel, tp_comm_overlap=False),
        training=dataclasses.replace(config.training, fp8=None),
        runtime=dataclasses.replace(config.runtime, deterministic=False),
    )


def _enough_microbatches(config: TrainConfig, count: int) -> int:
    """As many as fill every stage; with virtual stages a multiple of the stages."""
    stages = config.parallel.pipeline_model_parallel_size
    chunks = config.parallel.virtual_pipeline_model_parallel_size
    if chunks is None:
        return min(count, stages)
    warm_up = 2 * (stages - 1) + (chunks - 1) * stages + 1
    return min(count, stages * -(-warm_up // (stages * chunks)))


def figures_of_rank(config: TrainConfig, seq_length: int, count: int, run: int) -> StageFigures:
    """Build this rank's part and run one step of `run` micro-batches; the figures are those of `count`.

    Process groups exist. Under a FakeTensorMode nothing is computed; without one, tensors and collectives are real.
    """
    with _engine_of_a_gpu(), TensorLedger() as ledger:
        device = torch.device("cpu")
        training = build_training(config, config.model.architecture(), device, 10, first_weights=False)
        give_fresh_state(training.optimizer)
        for chunk in training.chunks:
            for layer in chunk.decoder.layers:
                layer.self_attention.core_attention.kernel = attend_in_shape
        _mark_passes(training, ledger)
        batches = [_whole_rows(config.training.micro_batch_size, seq_length) for _ in range(run)]
        ledger.begin()
        ledger.in_pass = True
        train_step(training, batches, 1, False)
        sent: dict[str, float] = {}
        for (purpose, in_pass), size in ledger.sent.items():
            sent[purpose] = sent.get(purpose, 0.0) + size * (count / run if in_pass else 1)
        stage = parallel_state.get_pipeline_model_parallel_rank()
        return StageFigures(stage, **_held(training), peak=ledger.peak, sent=sent)


def _held(training: Training) -> dict[str, int]:
    """Bytes that stay for the whole run."""
    parameters = [parameter for chunk in training.chunks for parameter in chunk.parameters()]
    weights = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in parameters}
    buffers = [buffer for chunk in training.wrapped for buffer in chunk.buffers]
    optimizers = [part.optimizer for part in getattr(training.optimizer, "chained_optimizers", [training.optimizer])]
    shards = [shard for adam in optimizers for group in adam.param_groups for shard in group["params"]]
    moments = [
        state[name] for adam in optimizers for state in adam.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    # In float32 a shard is a view of the weights.
    masters = [shard for shard in shards if shard.untyped_storage()._cdata not in weights]
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "weights": sum(weights.values()),
        "gradients": sum(buffer.grad_data.nbytes for buffer in buffers),
        "optimizer": sum(tensor.nbytes for tensor in [*masters, *moments]),
    }


def _mark_passes(training: Training, ledger: TensorLedger) -> None:
    """From the reduction of gradients on, a step does each thing once, whatever the number of micro-batches."""
    for chunk in training.wrapped:
        reduce = chunk.config.finalize_model_grads_func

        def once(*arguments: Any, reduce: Any = reduce, **options: Any) -> Any:
            ledger.in_pass = False
            return reduce(*arguments, **options)

        chunk.config.finalize_model_grads_func = once


def _whole_rows(rows: int, seq_length: int) -> Batch:
    """Rows of one document each, trained on everywhere: what takes most memory."""
    tokens = torch.zeros(rows, seq_length, dtype=torch.int64)
    bounds = torch.zeros(rows + 1, dtype=torch.int32)
    return Batch(
        tokens=tokens,
        labels=tokens,
        loss_mask=torch.ones(rows, seq_length),
        loss_positions=torch.arange(rows * seq_length),
        source_of_token=tokens,
        packed_seq_params=PackedSeqParams("sbhd", bounds, bounds, max_seqlen_q=seq_length, max_seqlen_kv=seq_length),
    )


class _FusedAttention(torch.autograd.Function):
    """Keeps queries, keys, values, context and the softmax statistics."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        context = torch.zeros_like(query)
        ctx.save_for_backward(query, key, value, context, query.new_zeros(query.shape[:2], dtype=torch.float32))
        return context

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros_like(tensor) for tensor in ctx.saved_tensors[:3])


def attend_in_shape(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    """An `attention.Kernel` that computes nothing and keeps what a fused kernel keeps."""
    context: torch.Tensor = _FusedAttention.apply(query, key, value)
    return context


class _FusedUnit(torch.autograd.Function):
    """Keeps both halves of the gated unit's input."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_and_up)
        return gate_and_up.new_zeros(*gate_and_up.shape[:-1], gate_and_up.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(ctx.saved_tensors[0])


def _gated_unit(gate_and_up: torch.Tensor, *_: Any) -> torch.Tensor:
    unit: torch.Tensor = _FusedUnit.apply(gate_and_up)
    return unit


def _norm_of_all(size: int, flag: Any, lists: list[list[torch.Tensor]], *_: Any) -> tuple[torch.Tensor, None]:
    """megatron-core's l2 norm, whose own reads values on the way."""
    return torch.stack([tensor.norm() for tensor in lists[0]]).norm().reshape(1), None


def _leave_as_it_is(module: torch.nn.Module, change: Any, recurse: bool = True) -> torch.nn.Module:
    """Module._apply of modules that have their device and type already; torch cannot exchange fake weights."""
    return module


@contextlib.contextmanager
def _engine_of_a_gpu() -> Iterator[None]:
    """torch's own collectives, where the host has others, and kernels that only keep what they would."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (param_and_grad_buffer, "dist_reduce_scatter_func", torch.distributed.reduce_scatter_tensor),
            (param_and_grad_buffer, "dist_all_gather_func", torch.distributed.all_gather_into_tensor),
            (mlp, "bias_swiglu_impl", _gated_unit),
            (mlp, "bias_geglu_impl", _gated_unit),
            (clip_grads, "l2_norm_impl", _norm_of_all),
            (torch.nn.Module, "_apply", _leave_as_it_is),
        ):
            stack.enter_context(replaced(owner, name, value))
        yield
