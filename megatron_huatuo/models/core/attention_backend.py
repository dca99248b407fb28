"""Which attention a run uses: the fastest of what is installed and can do what the backbone needs, said once.

Invariant: all backends keep documents apart (`isolation.py` proves it at every start) and give the same result within
rounding; on a CPU there is one. Neither torch nor megatron-core is loaded before a model is built.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

from packaging.version import InvalidVersion, Version

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.log import get_logger

TRANSFORMER_ENGINE_BACKEND = "transformer_engine"
BACKENDS = ("auto", TRANSFORMER_ENGINE_BACKEND, "flash_attn", "torch")
TRANSFORMER_ENGINE = "transformer_engine.pytorch"
# What megatron-core 0.16 knows, and the newest flash-attn that these take (docs/support_matrix.md).
_ENGINE_VERSIONS = ("2.9", "2.12")
_ENGINES_FLASH_ATTN = "2.8.3"
_CUDNN_TAKES_PACKED_ROWS = (9, 0)


def has_transformer_engine() -> bool:
    """Whether Transformer Engine can be used."""
    return engine_obstacle() is None


def engine_obstacle() -> str | None:
    """Why Transformer Engine cannot be used; None when it can. One that is installed and broken, or of an untested version,
    is said, once."""
    return import_obstacle(TRANSFORMER_ENGINE) or engine_version_obstacle()


def engine_layers_obstacle(device: str, precision: str) -> str | None:
    """Why the layers of a model are not Transformer Engine's; None where they are. It multiplies fp32 in TF32, ten bits of
    mantissa, so such runs have megatron-core's."""
    return _obstacle(TRANSFORMER_ENGINE, device, precision) or engine_version_obstacle()


@functools.lru_cache
def engine_version_obstacle() -> str | None:
    """Why an installed Transformer Engine is not used: its version; None when it fits."""
    found, (first, beyond) = _version_of("transformer-engine"), _ENGINE_VERSIONS
    if found is None or Version(first) <= found < Version(beyond):
        return None
    obstacle = f"transformer_engine {found} is untested with megatron-core 0.16: need {first} or newer, below {beyond}"
    get_logger(__name__).warning("%s", obstacle)
    return obstacle


def _version_of(distribution: str) -> Version | None:
    try:
        return Version(importlib.metadata.version(distribution))
    except (importlib.metadata.PackageNotFoundError, InvalidVersion):
        return None


@functools.lru_cache
def import_obstacle(module: str) -> str | None:
    """Why `module` cannot be imported, tried once; None when it can."""
    package = module.partition(".")[0]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            return f"the package {package} is not installed"
        obstacle = f"{package} is installed but broken: {error}"
    except Exception as error:  # compiled for another torch or CUDA: ImportError, OSError, RuntimeError
        obstacle = f"{package} is installed but broken: {type(error).__name__}: {error}"
    else:
        return None
    get_logger(__name__).warning("%s", obstacle)
    return obstacle


def choose_backend(
    setting: str, *, device: str, alibi: bool, precision: str, capability: tuple[int, int] | None = None
) -> str:
    """Name of the attention backend for a run.

    setting: one of BACKENDS. device: "cpu" or "cuda". precision: "fp32" or "bf16". capability: of the GPU; by default
    that of the current one.
    Raises: ConfigError when a backend is asked for that is absent or cannot do it.
    """
    if setting not in BACKENDS:
        raise ConfigError(f"wrong model.attention: got {setting!r}, need one of {', '.join(BACKENDS)}.")
    obstacles = {
        TRANSFORMER_ENGINE_BACKEND: engine_layers_obstacle(device, precision)
        or ("it has no ALiBi for packed rows" if alibi else None)
        or (_fused_obstacle(capability or _capability()) if device == "cuda" else None),
        "flash_attn": _obstacle("flash_attn", device, precision),
        "torch": None,
    }
    if setting == "auto":
        return next(name for name, obstacle in obstacles.items() if obstacle is None)
    if obstacles[setting]:
        raise ConfigError(f"wrong model.attention: got {setting!r}, but {obstacles[setting]}. Use auto or torch.")
    return setting


def _capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()


def _fused_obstacle(capability: tuple[int, int]) -> str | None:
    """Why Transformer Engine would attend to packed rows by its unfused kernel, which stores all scores and loops over
    documents. Before capability 9.0 cuDNN takes no packed rows, so it needs a flash-attn that it knows."""
    if capability >= _CUDNN_TAKES_PACKED_ROWS:
        return None
    found = _version_of("flash-attn")
    if found is not None and found <= Version(_ENGINES_FLASH_ATTN) and import_obstacle("flash_attn") is None:
        return None
    return (
        f"on compute capability {capability[0]}.{capability[1]} its fused attention needs flash-attn {_ENGINES_FLASH_ATTN} at "
        f"most, and there is {'none' if found is None else found}"
    )


def _obstacle(module: str, device: str, precision: str) -> str | None:
    if device != "cuda":
        return "it needs a GPU"
    if precision != "bf16":
        return "it needs precision bf16"
    return import_obstacle(module)


def core_attention(backend: str, *, device: str, alibi: bool) -> Callable[..., Any]:
    """Builder of the core attention module for megatron-core's layer specification."""
    _announce(backend, device)
    if backend == TRANSFORMER_ENGINE_BACKEND:
        from megatron_huatuo.models.core.transformer_engine import PackedTEAttention

        return PackedTEAttention
    from megatron_huatuo.models.core.attention import PackedAttention

    if backend == "flash_attn":
        from megatron_huatuo.models.core.attention_flash import attend_with_flash as kernel
    elif device == "cuda":
        from megatron_huatuo.models.core.attention_flex import attend_with_flex as kernel
    else:
        from megatron_huatuo.models.core.attention_torch import attend_by_document as kernel
    return functools.partial(PackedAttention, kernel=kernel, alibi=alibi)


@functools.lru_cache
def _announce(backend: str, device: str) -> None:
    slower = " (slower than flash-attn or Transformer Engine)" if (backend, device) == ("torch", "cuda") else ""
    get_logger(__name__).info("attention: %s on %s%s", backend, device, slower)
