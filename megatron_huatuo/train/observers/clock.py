"""Where the time of a step goes, and when this rank comes to the reduction of gradients, where it meets the others."""

from __future__ import annotations

import time
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads

_MARKS = ("begin", "reduction", "reduced", "updated")


class StepClock:
    """Looks at the clock at four places of a step; on GPUs by events on the stream."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events = {name: torch.cuda.Event(enable_timing=True) for name in _MARKS} if self._on_gpu else {}
        self._times = dict.fromkeys(_MARKS, 0.0)

    def _mark(self, name: str) -> None:
        self._times[name] = time.perf_counter()
        if self._on_gpu:
            self._events[name].record()

    def _between(self, first: str, last: str) -> float:
        if self._on_gpu:
            return self._events[first].elapsed_time(self._events[last]) / 1e3
        return self._times[last] - self._times[first]

    def begin(self) -> None:
        """A step begins."""
        self._mark("begin")

    def reduce_gradients(self, *arguments: Any, **options: Any) -> Any:
        """megatron-core's finalize_model_grads, with a look at the clock before and after."""
        self._mark("reduction")
        reduced = finalize_model_grads(*arguments, **options)
        self._mark("reduced")
        return reduced

    def end(self) -> None:
        """The weights are updated; on a GPU this waits until they are."""
        self._mark("updated")
        if self._on_gpu:
            self._events["updated"].synchronize()

    def to_reduction_s(self) -> float:
        """Seconds from the step's begin to its reduction. On a GPU the reduction must be known to be done (the gradient
        norm has been read)."""
        return self._between("begin", "reduction")

    def seconds(self, agreement_s: float) -> dict[str, float]:
        """Parts of the step that has ended. agreement_s: what the ranks' agreement took of the time of the update."""
        return {
            "forward_backward": self.to_reduction_s(),
            "gradient_reduction": self._between("reduction", "reduced"),
            "agreement": agreement_s,
            "optimizer": self._between("reduced", "updated") - agreement_s,
        }
