"""GPU kernels of packed attention against attention document by document, outputs and gradients."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from megatron_huatuo.models.core.alibi import alibi_slopes
from megatron_huatuo.models.core.attention import AttendedSegments
from megatron_huatuo.models.core.attention_torch import attend_by_document

pytestmark = pytest.mark.gpu
LENGTHS = [1, 300, 2, 700, 21]


def _kernel(name: str):
    if name == "flash_attn":
        if importlib.util.find_spec("flash_attn") is None:
            pytest.skip("flash-attn is not installed")
        from megatron_huatuo.models.core.attention_flash import attend_with_flash

        return attend_with_flash
    from megatron_huatuo.models.core.attention_flex import attend_with_flex

    return attend_with_flex


def _run(
    kernel, tensors: list[torch.Tensor], segments: AttendedSegments, slopes: torch.Tensor | None
) -> list[torch.Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = kernel(*leaves, segments, 0.125, slopes)
    output.float().square().sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("with_alibi", [False, True])
@pytest.mark.parametrize("name", ["flash_attn", "flex"])
def test_bf16_error_is_at_most_twice_that_of_plain_attention(name: str, with_alibi: bool) -> None:
    kernel = _kernel(name)
    torch.manual_seed(0)
    wide = [torch.randn(sum(LENGTHS), heads, 64, device="cuda") for heads in (8, 2, 2)]
    narrow = [tensor.bfloat16() for tensor in wide]
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
    segments = AttendedSegments(bounds, max(LENGTHS))
    slopes = alibi_slopes(8).cuda() if with_alibi else None
    exact = _run(attend_by_document, [tensor.float() for tensor in narrow], segments, slopes)
    plain = _run(attend_by_document, narrow, segments, slopes)
    for got, reference, expected in zip(_run(kernel, narrow, segments, slopes), plain, exact, strict=True):
        error, allowed = (got.float() - expected).norm(), 2 * (reference.float() - expected).norm()
        assert error <= allowed + 1e-3 * expected.norm()
