"""One training step: forward and backward over the micro-batches, agreement on what happened, update.

Invariant: the loss is the sum of token losses over the trained tokens of the global batch, never a mean of means, so it
does not depend on ranks and micro-batches. No update is made from a number that is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from megatron_huatuo.dataset.batch import Batch
from megatron_huatuo.train.observers.metrics import memory_gib
from megatron_huatuo.train.setup import Training


@dataclass
class StepResult:
    """What all ranks agree on after a step.

    loss_by_source: sums, tokens_by_source: trained tokens, both [num_sources]. someone_writes: a rank's share of a
    checkpoint is still being written. nonfinite_microbatches: this rank's own. seconds_to_reduction, data_wait_s,
    memory_gib (the highest so far): [ranks]. seconds: this rank's time by part of the step.
    """

    lm_loss: float
    loss_by_source: list[float]
    tokens_by_source: list[int]
    grad_norm: float
    updated: bool
    stop_requested: bool
    someone_writes: bool
    nonfinite_microbatches: list[int]
    seconds_to_reduction: list[float]
    data_wait_s: list[float]
    memory_gib: list[float]
    seconds: dict[str, float] = field(default_factory=dict)


def _sum_losses(
    batch: Batch, num_sources: int, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(sum to differentiate, number of trained tokens, report) of one micro-batch; losses float32 [b, L]."""
    flat = losses.float().view(-1)
    mask = batch.loss_mask.view(-1)
    total = torch.sum(flat * mask)
    tokens = mask.sum().to(torch.int)
    slots = torch.where(batch.source_of_token.view(-1) < 0, num_sources, batch.source_of_token.view(-1))
    report = torch.zeros(2, num_sources + 1, dtype=torch.float64, device=flat.device)
    report[0].index_add_(0, slots, (flat.detach() * mask).double())
    report[1].index_add_(0, slots, mask.double())
    return total, tokens, {"by_source": report[:, :num_sources]}


def forward_step(data: Iterator[Batch], model: Any, *, num_sources: int) -> tuple[torch.Tensor, Any]:
    """megatron-core's forward function: the next micro-batch through one chunk, and the function that sums its loss."""
    batch = next(data)
    output = model(
        batch.tokens,
        None,  # position ids, which rotary and ALiBi positions do not read
        None,
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
        loss_positions=batch.loss_positions,
    )
    return output, partial(_sum_losses, batch, num_sources)


def run_microbatches(
    training: Training, batches: list[Batch], num_sources: int, *, forward_only: bool = False
) -> torch.Tensor:
    """Forward (and backward) over one step's micro-batches.

    Returns float64 [num_microbatches, 2, num_sources]: loss sums and trained tokens by source of this rank's rows, zero
    where this rank is not the first tensor-parallel rank of the last pipeline stage.
    """
    reports = get_forward_backward_func()(
        forward_step_func=partial(forward_step, num_sources=num_sources),
        data_iterator=[iter(batches) for _ in training.wrapped] if len(training.wrapped) > 1 else iter(batches),
        model=training.wrapped if len(training.wrapped) > 1 else training.wrapped[0],
        num_microbatches=len(batches),
        seq_length=batches[0].tokens.shape[1],
        micro_batch_size=batches[0].tokens.shape[0],
        forward_only=forward_only,
    )
    if reports and parallel_state.get_tensor_model_parallel_rank() == 0:
        return torch.stack([report["by_source"] for report in reports])
    return torch.zeros(len(batches), 2, num_sources, dtype=torch.float64, device=batches[0].tokens.device)


def train_step(
    training: Training,
    batches: list[Batch],
    num_sources: int,
    stop_requested: bool,
    *,
    is_writing: bool = False,
    data_wait_s: float = 0.0,
) -> StepResult:
    """One step over all ranks. The update is left out, on every rank, when loss or gradient is not finite anywhere."""
    training.clock.begin()
    for chunk in training.wrapped:
        chunk.zero_grad_buffer()
    training.optimizer.zero_grad()
    by_microbatch = run_microbatches(training, batches, num_sources)

    optimizer = training.optimizer
    found_inf = optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm() or 0.0)
    by_source = by_microbatch.sum(dim=0)
    broken = bool(found_inf) or not math.isfinite(grad_norm) or not bool(torch.isfinite(by_source).all())
    computed = time.perf_counter()
    of_rank = [training.clock.to_reduction_s(), data_wait_s, memory_gib(by_source.device)]
    agreed = _agree(by_source, [broken, stop_requested, is_writing], of_rank)
    agreement_s = time.perf_counter() - computed
    if not agreed.flags[0]:
        _clip(optimizer, grad_norm)
        optimizer.step_with_ready_grads()
    training.clock.end()
    return StepResult(
        lm_loss=sum(agreed.loss_by_source) / max(1.0, sum(agreed.tokens_by_source)),
        loss_by_source=agreed.loss_by_source,
        tokens_by_source=[int(count) for count in agreed.tokens_by_source],
        grad_norm=grad_norm,
        updated=not agreed.flags[0],
        stop_requested=agreed.flags[1],
        someone_writes=agreed.flags[2],
        nonfinite_microbatches=_nonfinite(by_microbatch) if agreed.flags[0] else [],
        seconds_to_reduction=agreed.by_rank[0],
        data_wait_s=agreed.by_rank[1],
        memory_gib=agreed.by_rank[2],
        seconds={"data_wait": data_wait_s, **training.clock.seconds(agreement_s)},
    )


class _Agreed(NamedTuple):
    loss_by_source: list[float]
    tokens_by_source: list[float]
    flags: list[bool]
    by_rank: list[list[float]]


def _agree(by_source: torch.Tensor, flags: list[bool], of_rank: list[float]) -> _Agreed:
    """The step's one reduction: sums over ranks of by_source [2, num_sources], whether any rank has a flag set, and the
    numbers `of_rank` of every rank."""
    num_sources, rank, ranks = by_source.shape[1], dist.get_rank(), dist.get_world_size()
    others = torch.zeros(len(flags) + len(of_rank) * ranks, dtype=torch.float64)
    others[: len(flags)] = torch.tensor(flags, dtype=torch.float64)
    others[len(flags) :].view(len(of_rank), ranks)[:, rank] = torch.tensor(of_rank, dtype=torch.float64)
    agreed = torch.cat([by_source.flatten(), others.to(by_source.device)])
    dist.all_reduce(agreed)
    losses, tokens, set_flags, numbers = agreed.cpu().split(
        [num_sources, num_sources, len(flags), len(of_rank) * ranks]
    )
    return _Agreed(
        losses.tolist(), tokens.tolist(), [count > 0 for count in set_flags.tolist()], numbers.view(-1, ranks).tolist()
    )


def _nonfinite(by_microbatch: torch.Tensor) -> list[int]:
    finite = torch.isfinite(by_microbatch).flatten(1).all(dim=1).tolist()
    return [index for index, is_finite in enumerate(finite) if not is_finite]


def _clip(optimizer: Any, grad_norm: float) -> None:
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        parameters = part.get_parameters()
        if part.config.clip_grad > 0.0 and parameters:
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=grad_norm)
