"""Which attention a run uses: the fastest of what is installed and can do what the backbone needs, said once.

Invariant: all backends keep documents apart and give the same result within rounding; on a CPU there is one.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.core.attention import PackedAttention

BACKENDS = ("auto", "transformer_engine", "flash_attn", "torch")


TRANSFORMER_ENGINE = "transformer_engine.pytorch"


def has_transformer_engine() -> bool:
    """Whether Transformer Engine can be used. One that is installed and broken is said, once."""
    return import_obstacle(TRANSFORMER_ENGINE) is None


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


def choose_backend(setting: str, *, device: str, alibi: bool, precision: str) -> str:
    """Name of the attention backend for a run.

    setting: one of BACKENDS. device: "cpu" or "cuda". precision: "fp32" or "bf16".
    Raises: ConfigError when a backend is asked for that is absent or cannot do it.
    """
    if setting not in BACKENDS:
        raise ConfigError(f"wrong attention backend: got {setting!r}, need one of {', '.join(BACKENDS)}.")
    obstacles = {
        "transformer_engine": _obstacle(TRANSFORMER_ENGINE, device, precision)
        or ("it has no ALiBi for packed rows" if alibi else None),
        "flash_attn": _obstacle("flash_attn", device, precision),
        "torch": None,
    }
    if setting == "auto":
        return next(name for name, obstacle in obstacles.items() if obstacle is None)
    if obstacles[setting]:
        raise ConfigError(f"wrong attention backend: got {setting!r}, but {obstacles[setting]}. Use auto or torch.")
    return setting


def _obstacle(module: str, device: str, precision: str) -> str | None:
    if device != "cuda":
        return "it needs a GPU"
    if precision != "bf16":
        return "it needs precision bf16"
    return import_obstacle(module)


def core_attention(backend: str, *, device: str, alibi: bool) -> Callable[..., Any]:
    """Builder of the core attention module for megatron-core's layer specification."""
    _announce(backend, device)
    if backend == "transformer_engine":
        from megatron_huatuo.models.core.transformer_engine import PackedTEAttention

        return PackedTEAttention
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
