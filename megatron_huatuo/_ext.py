"""Loads the compiled kernel `megatron_huatuo._C`; without it the Python reference does the same work, slower.

Invariant: the choice changes speed, never bytes.
"""

from __future__ import annotations

import functools
from types import ModuleType

from megatron_huatuo.log import get_logger

_LATEST_PART = "PairEncoder"
"""A kernel without it was built from older sources."""


@functools.lru_cache(maxsize=1)
def load_kernel() -> ModuleType | None:
    """The compiled module, or None with one warning."""
    try:
        import megatron_huatuo._C as _C
    except ImportError as error:
        _warn(f"missing ({error})")
        return None
    if not hasattr(_C, _LATEST_PART):
        _warn(f"older than this version ({_C.__file__})")
        return None
    return _C


def _warn(what: str) -> None:
    get_logger(__name__).warning(
        "the compiled kernel is %s: blending runs in Python, with the same result but about 300 times slower, and rows are "
        "read about 10 times and text is tokenised two to three times slower. Build it with `python setup.py build_ext --inplace`.",
        what,
    )
