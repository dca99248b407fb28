"""torch and megatron-core, imported without what costs time and helps nobody. Comes before any other import of them.

The garbage collector waits meanwhile, and leaves out afterwards what the imports have defined: it would look through all of
it again and again, a sixth of their time. megatron-core hands its fused functions to torch.compile while it is imported,
which loads dynamo and inductor: 3 of the 8 s of processor time that a rank takes to start. Only a GPU calls those
functions; here they stay as they are.
"""

from __future__ import annotations

import gc
from typing import Any

_collects = gc.isenabled()
gc.disable()
import torch  # noqa: E402


def _as_it_is(function: Any = None, **options: Any) -> Any:
    return _as_it_is if function is None else function


compile_function = torch.compile
if torch.version.cuda is None:
    torch.compile = _as_it_is  # type: ignore[assignment]
try:
    import megatron.core  # noqa: F401
finally:
    torch.compile = compile_function
    gc.freeze()
    if _collects:
        gc.enable()
