"""When this rank comes to the reduction of gradients, where it meets the others: the mark of a straggler."""

from __future__ import annotations

import time
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads


class Arrival:
    """Measures the time from a step's begin to its gradient reduction; on GPUs by events on the stream."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._on_gpu else []
        self._times = [0.0, 0.0]

    def _mark(self, place: int) -> None:
        self._times[place] = time.perf_counter()
        if self._on_gpu:
            self._events[place].record()

    def begin(self) -> None:
        """A step begins."""
        self._mark(0)

    def reduce_gradients(self, *arguments: Any, **options: Any) -> Any:
        """megatron-core's finalize_model_grads, with a look at the clock before."""
        self._mark(1)
        return finalize_model_grads(*arguments, **options)

    def seconds(self) -> float:
        """Of the last step. On a GPU the reduction must be known to be done (the gradient norm has been read)."""
        if self._on_gpu:
            return self._events[0].elapsed_time(self._events[1]) / 1e3
        return self._times[1] - self._times[0]
