"""A GPU in name alone: what torch.cuda is asked is answered, and tensors asked for on it lie on the CPU.

Unlike `parallel/host.py`, which makes a run on the CPU, this leaves the project's own branches for GPUs as they are: the run's
device is "cuda:0", its layers are those of Transformer Engine, its batches go through pinned memory and a stream.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.utils._device

_CPU = torch.device("cpu")
_NAMES = {80: "NVIDIA A100-SXM4-80GB", 90: "NVIDIA H100 80GB HBM3", 100: "NVIDIA B200"}
_FACTORIES = (
    *("tensor", "as_tensor", "zeros", "ones", "empty", "full", "rand", "randn", "randint", "randperm", "arange"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "empty_strided"),
)
_METHODS = ("to", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor")


class Stream:
    """Everything that was asked of it is done at once."""

    cuda_stream = 0

    def __init__(self, *arguments: Any, **options: Any) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        """An event that has happened."""
        return Event()


class Event:
    """A look at the clock."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._time = time.perf_counter()

    def record(self, stream: Any = None) -> None:
        """Now."""
        self._time = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds."""
        return (later._time - self._time) * 1e3

    def synchronize(self) -> None: ...
    def wait(self, stream: Any = None) -> None: ...


class Properties:
    """Of the device."""

    multi_processor_count, total_memory = 108, 80 << 30

    def __init__(self, capability: int) -> None:
        self.major, self.minor, self.name = capability // 10, capability % 10, _NAMES[capability]


class _Generators:
    """The CPU's, whatever the device."""

    def __getitem__(self, device: Any) -> torch.Generator:
        return torch.default_generator


def install(capability: int) -> None:
    """Answer for a GPU of a compute capability (80, 90 or 100) in this process, before Transformer Engine is imported."""
    _answer_questions(Properties(capability))
    # `with torch.device("meta")` knows factories by identity from a list that it makes once: let it list the real ones.
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    for name in _METHODS:
        setattr(torch.Tensor, name, _on_cpu(getattr(torch.Tensor, name)))
    _change_tensors()


def _answer_questions(properties: Properties) -> None:
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 8,
        "current_device": torch.device("cuda", 0),  # a number, on a GPU; torch without CUDA knows no device by number
        "get_device_properties": properties,
        "get_device_capability": (properties.major, properties.minor),
        "get_device_name": properties.name,
        "current_stream": Stream(),
        "default_stream": Stream(),
        "is_current_stream_capturing": False,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "memory_reserved": 0,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, _answering(answer))
    for name in ("synchronize", "empty_cache", "set_device", "set_stream", "_lazy_init", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, _answering(None))
    for name in ("device", "stream"):
        setattr(torch.cuda, name, lambda *arguments: contextlib.nullcontext())
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = _answering(None)
    torch.cuda.default_generators = _Generators()
    torch.cuda._lazy_call = lambda function, **options: function()
    for module in (torch.cuda, torch.cuda.random):
        module.manual_seed = torch.manual_seed
        module.get_rng_state = lambda *arguments, **options: torch.get_rng_state()
        module.set_rng_state = lambda state, *arguments, **options: torch.set_rng_state(state)


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *arguments, **options: answer


def _is_gpu(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a GPU among its arguments replaced by the CPU; a number as `device` is a GPU too."""

    @functools.wraps(function)
    def on_cpu(*arguments: Any, **options: Any) -> Any:
        device = options.get("device")
        if _is_gpu(device) or (isinstance(device, int) and not isinstance(device, bool)):
            options["device"] = _CPU
        return function(*(_CPU if _is_gpu(argument) else argument for argument in arguments), **options)

    return on_cpu


def _change_tensors() -> None:
    type_of = torch.Tensor.type

    def type_name(self: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        result = type_of(self, *arguments, **options)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    torch.Tensor.type = type_name
    torch.Tensor.is_cuda = property(lambda self: True)
    torch.Tensor.cuda = torch.Tensor.pin_memory = lambda self, *arguments, **options: self
    torch.Tensor.record_stream = lambda self, stream: None
    torch.nn.Module.cuda = lambda self, *arguments: self


def gloo_for_nccl() -> None:
    """gloo reduces what NCCL would; reduce-scatter and all-gather of the data parallelism as `host.py` does them. Imports
    megatron-core, which looks for Transformer Engine then."""
    from megatron_huatuo.parallel import host

    start = dist.init_process_group

    def init_process_group(backend: str, **options: Any) -> None:
        start("gloo" if backend == "nccl" else backend, **options)

    dist.init_process_group = init_process_group
    host._patch_collectives()
