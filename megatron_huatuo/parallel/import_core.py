"""megatron-core, imported without what a torch without CUDA never calls. Comes before any other import of it.

megatron-core hands its fused functions to torch.compile while it is imported, which loads dynamo and inductor: 3 of the 8 s
of processor time that a rank takes to start. Only a GPU calls those functions; here they stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch


def _as_it_is(function: Any = None, **options: Any) -> Any:
    return _as_it_is if function is None else function


if torch.version.cuda is None:
    compile_function = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        import megatron.core  # noqa: F401
    finally:
        torch.compile = compile_function
