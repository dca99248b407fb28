"""Loads the compiled kernel `megatron_huatuo._C`; without it the Python reference does the same work, slower.

Invariant: the choice changes speed, never bytes.
"""

from __future__ import annotations

import functools
from types import ModuleType

from megatron_huatuo.log import get_logger


@functools.lru_cache(maxsize=1)
def load_kernel() -> ModuleType | None:
    """The compiled module, or None with one warning."""
    try:
        import megatron_huatuo._C as _C
    except ImportError as error:
        get_logger(__name__).warning(
            "the compiled kernel is missing (%s): blending runs in Python, with the same result but about 300 times "
            "slower. Build it with `python setup.py build_ext --inplace`.",
            error,
        )
        return None
    return _C
