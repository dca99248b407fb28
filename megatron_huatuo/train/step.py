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
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from megatron_huatuo.dataset.batch import Batch
from megatron_huatuo.train.setup import Training


@dataclass
class StepResult:
    """What all ranks agree on after a step.

    loss_by_source: sums, tokens_by_source: trained tokens, both [num_sources]. nonfinite_ranks: ranks that saw a number
    that is not finite; nonfinite_microbatches: this rank's own. seconds: time by part of the step.
    """

    lm_loss: float
    loss_by_source: list[float]
    tokens_by_source: list[int]
    grad_norm: float
    updated: bool
    stop_requested: bool
    nonfinite_ranks: int
    nonfinite_microbatches: list[int]
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
        batch.position_ids,
        None,
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
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


def train_step(training: Training, batches: list[Batch], num_sources: int, stop_requested: bool) -> StepResult:
    """One step over all ranks. The update is left out, on every rank, when loss or gradient is not finite anywhere."""
    started = time.perf_counter()
    for chunk in training.wrapped:
        chunk.zero_grad_buffer()
    training.optimizer.zero_grad()
    by_microbatch = run_microbatches(training, batches, num_sources)
    computed = time.perf_counter()

    optimizer = training.optimizer
    found_inf = optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm() or 0.0)
    by_source = by_microbatch.sum(dim=0)
    broken = bool(found_inf) or not math.isfinite(grad_norm) or not bool(torch.isfinite(by_source).all())
    flags = torch.tensor([[float(broken)], [float(stop_requested)]], dtype=torch.float64, device=by_source.device)
    agreed = torch.cat([by_source, flags], dim=1)
    dist.all_reduce(agreed)
    sums, tokens = agreed[0, :-1].tolist(), agreed[1, :-1].tolist()
    nonfinite_ranks = int(agreed[0, -1].item())
    if nonfinite_ranks == 0:
        _clip(optimizer, grad_norm)
        optimizer.step_with_ready_grads()
    finished = time.perf_counter()
    return StepResult(
        lm_loss=sum(sums) / max(1.0, sum(tokens)),
        loss_by_source=sums,
        tokens_by_source=[int(count) for count in tokens],
        grad_norm=grad_norm,
        updated=nonfinite_ranks == 0,
        stop_requested=agreed[1, -1].item() > 0,
        nonfinite_ranks=nonfinite_ranks,
        nonfinite_microbatches=_nonfinite(by_microbatch) if nonfinite_ranks else [],
        seconds={"forward_backward": computed - started, "optimizer": finished - computed},
    )


def _nonfinite(by_microbatch: torch.Tensor) -> list[int]:
    finite = torch.isfinite(by_microbatch).flatten(1).all(dim=1).tolist()
    return [index for index, is_finite in enumerate(finite) if not is_finite]


def _clip(optimizer: Any, grad_norm: float) -> None:
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        parameters = part.get_parameters()
        if part.config.clip_grad > 0.0 and parameters:
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=grad_norm)
