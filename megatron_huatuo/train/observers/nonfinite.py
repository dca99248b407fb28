"""What a NaN or infinite loss or gradient does: it is named with its rows and sources, and then stops or is skipped."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.log import get_logger
from megatron_huatuo.train.run import Run
from megatron_huatuo.train.setup import is_log_rank
from megatron_huatuo.train.step import StepResult

MOST_SKIPPED = 10


class NonfiniteGuard:
    """Counts skipped steps in a row: weights that are broken themselves would skip all steps to the end."""

    def __init__(self) -> None:
        self._skipped = 0

    def check(self, run: Run, result: StepResult) -> None:
        """After a step. Raises: HuatuoError on all ranks when the run shall stop, or after MOST_SKIPPED steps in a row."""
        self._skipped = 0 if result.updated else self._skipped + 1
        if result.updated:
            return
        message = _describe(run, result)
        if run.config.training.on_nonfinite == "stop":
            raise HuatuoError(
                f"{message}. No update was made; lower optimizer.lr, or set training.on_nonfinite to skip."
            )
        if self._skipped >= MOST_SKIPPED:
            raise HuatuoError(f"{message}. {MOST_SKIPPED} steps in a row were skipped: go back to an older checkpoint.")
        if is_log_rank():
            get_logger(__name__).warning("%s; step skipped", message)


def _describe(run: Run, result: StepResult) -> str:
    """Iteration, ranks, rows and sources; all ranks take part."""
    mine = [
        row for index in result.nonfinite_microbatches for row in run.layout.rows(run.consumed_train_samples, index)
    ]
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, mine)
    per_rank = {rank: found for rank, found in enumerate(seen) if found}
    rows = sorted({row for found in per_rank.values() for row in found if row < len(run.rows)})
    named = str(rows[:8])
    if not rows:  # finite losses of all: any row of the batch can have given the gradient
        first = run.consumed_train_samples
        rows = list(range(first, min(first + run.config.training.global_batch_size, len(run.rows))))
        named = f"{rows[0]} to {rows[-1]}"
    sources = sorted({run.rows.source_names[source] for row in rows for source, _ in run.rows.documents_of(row)})
    return (
        f"loss or gradient is not finite at iteration {run.iteration + 1}: ranks {sorted(per_rank) or 'all (gradient)'}, "
        f"rows {named}, sources {sources}, gradient norm {result.grad_norm}"
    )
