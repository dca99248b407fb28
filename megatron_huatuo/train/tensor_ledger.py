"""What a rank holds and sends, counted where torch dispatches its operators: on fake tensors as on real ones.

Invariant: a storage counts once, from the operator that returned it until nothing refers to it. What a kernel allocates inside
itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

# First words of the descriptions of megatron-core's groups, and what their traffic is for.
_PURPOSES = {"TENSOR": "tensor_parallel", "PIPELINE": "pipeline", "DATA": "data_parallel", "EMBEDDING": "embedding"}


def _all_reduce(ranks: int) -> float:
    return 2 * (ranks - 1) / ranks


def _one_way(ranks: int) -> float:
    return (ranks - 1) / ranks


def _whole(ranks: int) -> float:
    return float(ranks > 1)


def _nothing(ranks: int) -> float:
    return 0.0


# Argument that holds the whole message, and the share of it that a rank sends (the ring of NCCL).
_SENT: dict[str, tuple[int, Callable[[int], float]]] = {
    "allreduce_": (0, _all_reduce),
    "allreduce_coalesced_": (0, _all_reduce),
    "_allgather_base_": (0, _one_way),
    "allgather_": (0, _one_way),
    "allgather_into_tensor_coalesced_": (0, _one_way),
    "_reduce_scatter_base_": (1, _one_way),
    "reduce_scatter_tensor_coalesced_": (1, _one_way),
    "broadcast_": (0, _whole),
    "send": (0, _whole),
    "recv_": (0, _nothing),
    "barrier": (0, _nothing),
}


class TensorLedger(TorchDispatchMode):
    """Counts while it is entered; enter it after a FakeTensorMode.

    live, peak: bytes. sent: bytes by (purpose, whether in a pass of a micro-batch). A purpose is one of tensor_parallel, pipeline,
    data_parallel, embedding (tied ends of a pipeline) and agreement (norms, losses, flags). in_pass: set by the caller.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.sent: dict[tuple[str, bool], float] = {}
        self.in_pass = False
        self._sizes: dict[int, int] = {}

    def begin(self) -> None:
        """Forget what was sent, and the peak before now."""
        self.peak = self.live
        self.sent.clear()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        is_fake = any(isinstance(part, FakeTensor) for part in tree_iter(args))
        if function.namespace == "c10d":
            self._send(function, args)
            if is_fake:
                return _done(function, args)
        if is_fake and function is torch.ops.aten._local_scalar_dense.default:
            return (
                args[0].dtype == torch.bool
            )  # fake tensors have no values: numbers are 0, and what is asked of them holds
        result = function(*args, **(kwargs or {}))
        for part in tree_iter(result):
            if isinstance(part, torch.Tensor) and part.untyped_storage()._cdata not in self._sizes:
                self._hold(part.untyped_storage(), args)
        return result

    def _hold(self, storage: torch.UntypedStorage, args: tuple[Any, ...]) -> None:
        key = storage._cdata
        given = {part.untyped_storage()._cdata for part in tree_iter(args) if isinstance(part, torch.Tensor)}
        if key in given:  # a view of what no operator returned: a backend's own copy, or older than the ledger
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def _send(self, function: Any, args: tuple[Any, ...]) -> None:
        place, share = _SENT[function._opname]
        group = dist.ProcessGroup.unbox(_group(args))
        message = sum(part.nbytes for part in tree_iter(args[place]) if isinstance(part, torch.Tensor))
        # Between two stages megatron-core sends over the group of all ranks too.
        is_transfer = function._opname in ("send", "recv_")
        purpose = "pipeline" if is_transfer else _PURPOSES.get(group.group_desc.partition("_")[0], "agreement")
        # Gradients and weights travel once per step, beside the passes that they overlap with.
        key = purpose, self.in_pass and purpose != "data_parallel"
        self.sent[key] = self.sent.get(key, 0.0) + share(group.size()) * message


def _group(args: tuple[Any, ...]) -> Any:
    return next(part for part in args if isinstance(part, torch.ScriptObject) and "ProcessGroup" in str(part._type()))


def _done(function: Any, args: tuple[Any, ...]) -> Any:
    """What a collective returns that has ended: its tensors, if it returns them, and a handle to wait on."""
    with _disable_current_modes():
        work = torch.ops.c10d.barrier(torch.empty(1), _group(args), [], True, -1)
    return (args[0], work) if len(function._schema.returns) == 2 else work
