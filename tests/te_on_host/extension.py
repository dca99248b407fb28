"""transformer_engine_torch, the module by which Transformer Engine's Python reaches C++ and CUDA, without its compiled part.

Enumerations are read from the headers of the release. Which kernel of cuDNN fits is asked of the release's own library, told
of a device by `fake_device.c`. What `kernels.py` computes is taken from there; every other name is there too, and refuses.
"""

from __future__ import annotations

import ctypes
import enum
import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

# Not in the public headers: the order of transformer_engine/pytorch/csrc/common.h.
_FORWARD = [f"GEMM{number}_{part}" for number in (1, 2, 3) for part in ("INPUT", "WEIGHT", "OUTPUT")]
_BACKWARD = [f"GRAD_{part}{number}" for number in (1, 2, 3) for part in ("OUTPUT", "INPUT")]


def install(packages: Path, fake_device: Path) -> None:
    """Put the stand-in into sys.modules and keep Transformer Engine from loading its own; before it is imported.

    packages: folder in which the pinned wheels lie.
    """
    module = types.ModuleType("transformer_engine_torch")
    module.__getattr__ = _refusing  # type: ignore[method-assign]
    for header in sorted((packages / "transformer_engine/common/include/transformer_engine").glob("*.h")):
        vars(module).update(_enumerations(header.read_text()))
    module.FP8FwdTensors = enum.IntEnum("FP8FwdTensors", _FORWARD, start=0)
    module.FP8BwdTensors = enum.IntEnum("FP8BwdTensors", _BACKWARD, start=0)
    sys.modules["transformer_engine_torch"] = module
    from tests.te_on_host import kernels

    for kernel in kernels.KERNELS:
        setattr(module, kernel.__name__, kernel)
    module.get_cudnn_version = _load(packages, fake_device).cudnnGetVersion
    module.get_fused_attn_backend = _fused_attention_chooser(packages, module.NVTE_Fused_Attn_Backend)
    _leave_out_loading()


def _enumerations(header: str) -> dict[str, Any]:
    """{name: IntEnum} of the enumerations in a C++ header."""
    without_comments = re.sub(r"/\*.*?\*/|//[^\n]*", "", header, flags=re.DOTALL)
    found = {}
    for name, body in re.findall(r"enum (?:class )?(\w+)[^{;]*\{([^}]*)\}", without_comments):
        values, following = {}, 0
        for word, number in re.findall(r"(\w+)(?:\s*=\s*(-?\d+))?\s*(?:,|$)", body.strip()):
            values[word] = int(number) if number else following
            following = values[word] + 1
        found[name] = enum.IntEnum(name, values)
    return found


def _refusing(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(self: Any, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError(f"transformer_engine_torch.{name} has no stand-in on the CPU")

    # A class: Transformer Engine names some of them as types.
    return type(name, (), {"__init__": refuse, "__module__": "transformer_engine_torch"})


def _load(packages: Path, fake_device: Path) -> ctypes.CDLL:
    """The device first, so that nobody asks the real runtime for one; returns cuDNN."""
    ctypes.CDLL(str(fake_device), ctypes.RTLD_GLOBAL)
    libraries = [ctypes.CDLL(str(packages / "nvidia" / part), ctypes.RTLD_GLOBAL) for part in _LIBRARIES]
    return libraries[_LIBRARIES.index(_CUDNN)]


def _fused_attention_chooser(packages: Path, backends: Any) -> Any:
    """nvte_get_fused_attn_backend of the release's library: what of cuDNN's attention fits."""
    [core] = (packages / "transformer_engine").rglob("libtransformer_engine.so")
    choose = ctypes.CDLL(str(core), ctypes.RTLD_GLOBAL).nvte_get_fused_attn_backend
    choose.argtypes = [ctypes.c_bool, *[ctypes.c_int] * 6, ctypes.c_float, *[ctypes.c_size_t] * 6]
    choose.argtypes += [*[ctypes.c_int64] * 2, *[ctypes.c_bool] * 2]
    return lambda *arguments: backends(choose(*arguments))


_CUDNN = "cudnn/lib/libcudnn.so.9"
_LIBRARIES = (
    *("cu13/lib/libcudart.so.13", "cu13/lib/libnvrtc.so.13", "cu13/lib/libcublasLt.so.13", "cu13/lib/libcublas.so.13"),
    _CUDNN,
    *(f"cudnn/lib/libcudnn{part}.so.9" for part in (
        "_graph", "_ops", "_engines_runtime_compiled", "_engines_precompiled", "_heuristic", "_cnn", "_adv",
    )),
)  # fmt: skip


def _leave_out_loading() -> None:
    """`transformer_engine.common` loads the compiled extension by its own hand: import it first, alone, and take that out."""
    found = importlib.util.find_spec("transformer_engine")
    assert found is not None and found.submodule_search_locations is not None
    package = types.ModuleType("transformer_engine")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["transformer_engine"] = package
    common = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None  # type: ignore[attr-defined]
    del sys.modules["transformer_engine"]
    importlib.import_module("transformer_engine").common = common  # type: ignore[attr-defined]
    # It takes the names of the extension over by `import *`, which asks for those that are there alone.
    importlib.import_module("transformer_engine.pytorch.cpp_extensions").__getattr__ = _refusing  # type: ignore[method-assign]
