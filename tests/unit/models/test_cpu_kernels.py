"""The kernels of the CPU against megatron-core's unfused ones and plain autograd: results and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

from megatron_huatuo.models.core.cpu_kernels import (
    WeightGradient,
    apply_rotary_pos_emb,
    bias_geglu,
    bias_swiglu,
    rms_norm,
)

SEQ, BATCH, HEADS, DIM = 7, 2, 3, 8


def result_and_gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), x)]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_equals_the_unfused_one(generator: torch.Generator, dtype: torch.dtype) -> None:
    angles = torch.rand(SEQ, 1, 1, DIM // 2, generator=generator) * 6
    freqs = torch.cat((angles, angles), dim=-1)
    # Queries as attention cuts them out of one product: not contiguous.
    query = torch.randn(SEQ, BATCH, HEADS, 3 * DIM, generator=generator).to(dtype)[..., DIM : 2 * DIM]
    ours = result_and_gradient(lambda t: apply_rotary_pos_emb(t, freqs), query)
    stock = result_and_gradient(lambda t: _apply_rotary_pos_emb_bshd(t, freqs), query)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for got, want in zip(ours, stock, strict=True):
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def test_gated_unit_equals_plain_autograd(generator: torch.Generator) -> None:
    x = torch.randn(SEQ, BATCH, 2 * DIM, generator=generator)
    bias = torch.randn(2 * DIM, generator=generator)

    def plain(t: torch.Tensor) -> torch.Tensor:
        gate, up = (t + bias).chunk(2, dim=-1)
        return F.silu(gate) * up

    ours = result_and_gradient(lambda t: bias_swiglu(t, bias, False, False), x)
    for got, want in zip(ours, result_and_gradient(plain, x), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(bias_swiglu(x, None), bias_swiglu(x, torch.zeros(2 * DIM)))


def test_gelu_gated_unit_equals_plain_autograd_and_the_fused_kernel(generator: torch.Generator) -> None:
    from megatron.core.fusions.fused_bias_geglu import geglu, geglu_back

    x = 3 * torch.randn(SEQ, BATCH, 2 * DIM, generator=generator)
    bias = torch.randn(2 * DIM, generator=generator)

    def plain(t: torch.Tensor) -> torch.Tensor:
        gate, up = (t + bias).chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * up

    ours = result_and_gradient(lambda t: bias_geglu(t, bias), x)
    for got, want in zip(ours, result_and_gradient(plain, x), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    output, gradient = result_and_gradient(lambda t: bias_geglu(t, None), x)
    with torch.compiler.set_stance("force_eager"):
        weights = torch.linspace(-1, 1, output.numel()).view_as(output)
        torch.testing.assert_close(geglu(x), output, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(geglu_back(weights, x), gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_norm_equals_torch_in_double_precision(
    generator: torch.Generator, dtype: torch.dtype, tolerance: float
) -> None:
    weight = (torch.rand(DIM, generator=generator) + 0.5).to(dtype).requires_grad_()
    x = (torch.randn(BATCH, SEQ, DIM, generator=generator) * 3).to(dtype)
    x[0, 0] = 1e-4  # so small that eps counts
    x = x.transpose(0, 1)

    def gradients(norm: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = norm(x, weight)
        slope = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
        return [y.detach(), *torch.autograd.grad((y * slope).sum(), (x, weight))]

    ours = gradients(lambda x, weight: rms_norm(x, weight, 1e-5), x, weight)
    exact = gradients(lambda x, weight: F.rms_norm(x, (DIM,), weight, 1e-5), x.double(), weight.double())
    for got, want in zip(ours, exact, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, atol=tolerance * want.abs().max().item(), rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_is_added_to_the_buffer(generator: torch.Generator, dtype: torch.dtype) -> None:
    inputs, grads = (torch.randn(SEQ, width, generator=generator).to(dtype) for width in (DIM, HEADS))
    buffer = torch.ones(HEADS, DIM)
    WeightGradient.wgrad_gemm_accum_fp32(inputs, grads, buffer)
    torch.testing.assert_close(buffer, 1 + (grads.t() @ inputs).float(), atol=1e-5, rtol=1e-5)
