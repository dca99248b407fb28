"""The one file that lets megatron-core run without CUDA.

megatron-core names the CUDA device in its own code. `enable_host()` sends those names to the CPU: the functions of
`torch.cuda` that it calls, the tensor factories' `device="cuda"`, `Tensor.cuda`, the type names that its optimizer
compares, the random-number states of its tensor-parallel generator, the two collectives of its data parallelism, and what
it has taken from Transformer Engine and apex where they are installed. Norm and optimizer seams follow from their absence,
not from missing CUDA, and live in model/ and checkpoint/.

Invariant: patches are applied once per process, only for the versions they were written for, only when the run's device
is the CPU.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.utils._device

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.parallel.core_versions import refuse_untested

_CPU = torch.device("cpu")
_EXCHANGED = 1 << 22  # numbers of one message of a reduction
_FACTORIES = (
    "tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "rand",
    "randn",
    "randint",
    "arange",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
)


def resolve_device(setting: str) -> str:
    """Device of a run, "cpu" or "cuda", for `runtime.device` = auto|cpu|cuda.

    Raises: ConfigError when CUDA is asked for and absent.
    """
    if setting not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"wrong runtime.device: got {setting!r}, need auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise ConfigError(
            "wrong runtime.device: got 'cuda', but torch sees no GPU. Use auto or cpu, or install a driver."
        )
    return "cuda" if setting == "cuda" or (setting == "auto" and available) else "cpu"


def enable_device(setting: str) -> torch.device:
    """Make this process ready for `runtime.device` and return its device (CUDA: that of LOCAL_RANK)."""
    if resolve_device(setting) == "cpu":
        enable_host()
        return _CPU
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def enable_host() -> None:
    """Let megatron-core run on the CPU in this process. Calling it again changes nothing.

    Raises: ConfigError for a megatron-core that the patches were not written for.
    """
    if getattr(torch.cuda.current_device, "sends_cuda_to_host", False):
        return
    refuse_untested()
    _patch_cuda_functions()
    # `with torch.device("meta")` knows factories by identity from a list that it makes once: let it list the real ones.
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_host(getattr(torch, name)))
    _patch_tensor_methods()
    _patch_collectives()
    _patch_gpu_packages()
    _patch_kernels()


def _patch_cuda_functions() -> None:
    import megatron.core.tensor_parallel.random as mcore_random

    def current_device() -> torch.device:
        return _CPU

    current_device.sends_cuda_to_host = True  # type: ignore[attr-defined]
    torch.cuda.current_device = current_device  # type: ignore[assignment]
    # current_stream: megatron-core 0.19 lets it wait for gradients that CUDA graphs have made; here there are none.
    for name in ("synchronize", "empty_cache", "set_device", "current_stream"):
        setattr(torch.cuda, name, _nothing())
    torch.cuda.manual_seed = torch.manual_seed  # type: ignore[assignment]
    torch.cuda.get_rng_state = mcore_random._get_cuda_rng_state = _get_rng_state
    torch.cuda.set_rng_state = mcore_random._set_cuda_rng_state = _set_rng_state  # type: ignore[assignment]


def _nothing() -> Callable[..., None]:
    """A new function each time: torch.compile refuses one object under several names of torch.cuda."""

    def do_nothing(*args: Any, **kwargs: Any) -> None:
        return None

    return do_nothing


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(state)


def _names_cuda(device: Any) -> bool:
    return device is not None and str(device).startswith("cuda")


def _on_host(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def on_host(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return on_host


def _patch_tensor_methods() -> None:
    type_of = torch.Tensor.type

    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = type_of(self, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    torch.Tensor.cuda = cuda  # type: ignore[assignment]
    torch.Tensor.type = type_name  # type: ignore[assignment]


def _patch_collectives() -> None:
    """gloo's reduce-scatter is an all-reduce of a copy, and its all-gather copies too: at 30 million parameters 160 and
    120 ms. In megatron-core the share is a view of the whole, so both can be done where the numbers lie: 45 and 35 ms."""
    from megatron.core.distributed import param_and_grad_buffer

    def reduce_scatter(
        share: torch.Tensor,
        whole: torch.Tensor,
        *,
        op: dist.ReduceOp.RedOpType,
        group: dist.ProcessGroup,
        async_op: bool,
    ) -> None:
        """Each rank adds up its own share, in a fixed order: its neighbour's part, then the next one's."""
        assert op == dist.ReduceOp.SUM, op
        rank, ranks = group.rank(), group.size()
        parts = [part.split(_EXCHANGED) for part in whole.chunk(ranks)]
        incoming = torch.empty_like(parts[rank][0])
        for distance in range(1, ranks):
            to, origin = (rank + distance) % ranks, (rank - distance) % ranks
            for mine, outgoing in zip(parts[rank], parts[to], strict=True):
                arrived = incoming[: len(mine)]
                works = (
                    dist.irecv(arrived, group=group, group_src=origin),
                    dist.isend(outgoing, group=group, group_dst=to),
                )
                for work in works:
                    assert work is not None
                    work.wait()
                mine.add_(arrived)

    def all_gather(whole: torch.Tensor, share: torch.Tensor, *, group: dist.ProcessGroup, async_op: bool) -> None:
        shares = whole.chunk(group.size())
        works = [dist.broadcast(part, group=group, group_src=rank, async_op=True) for rank, part in enumerate(shares)]
        for work in works:
            work.wait()

    param_and_grad_buffer.dist_reduce_scatter_func = reduce_scatter
    param_and_grad_buffer.dist_all_gather_func = all_gather


def _patch_gpu_packages() -> None:
    """megatron-core takes the parts of Transformer Engine and apex by what can be imported, not by the device; they know no
    CPU. Back to what it has without them."""
    import megatron.core.optimizer as mcore_optimizer
    import megatron.core.tensor_parallel.layers as linear_layers
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, distrib_optimizer, optimizer
    from megatron.core.transformer import attention, transformer_block
    from megatron.core.transformer.moe import fused_a2a

    mcore_optimizer.USING_PYTORCH_OPTIMIZER, mcore_optimizer.Adam = True, torch.optim.AdamW
    distrib_optimizer.HAVE_APEX_OR_TE = False
    for module in (clip_grads, optimizer):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm
    clip_grads.multi_tensor_scale_tensor_impl = None  # of 0.19, as HAVE_TE_EP, which it reads when groups end
    linear_layers.HAVE_TE = False
    fused_a2a.HAVE_TE_EP = False
    attention.SplitAlongDim = None
    transformer_block.get_cpu_offload_context = None


def _patch_kernels() -> None:
    import megatron.core.models.common.embeddings.rope_utils as rope
    import megatron.core.tensor_parallel.layers as linear_layers
    import megatron.core.transformer.mlp as mlp

    from megatron_huatuo.models.core import cpu_kernels

    rope.fused_apply_rotary_pos_emb = cpu_kernels.apply_rotary_pos_emb
    mlp.bias_swiglu_impl = cpu_kernels.bias_swiglu
    mlp.bias_geglu_impl = cpu_kernels.bias_geglu
    linear_layers.fused_weight_gradient_mlp_cuda = cpu_kernels.WeightGradient
    linear_layers._grad_accum_fusion_available = True
