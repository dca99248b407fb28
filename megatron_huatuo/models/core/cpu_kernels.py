"""What Transformer Engine and apex fuse on GPUs, in plain torch for the CPU: the same numbers in fewer passes over memory.

Invariant: each has the name, the arguments and the result of the kernel in whose place `host.enable_host()` puts it;
`rms_norm`, which has none there, is called by `model/norm.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class _Rotation(torch.autograd.Function):
    """Turn each pair (t[i], t[i + d/2]) by its angle; the gradient turns back."""

    @staticmethod
    def forward(ctx: Any, t: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(t, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(t: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned = t.new_empty(t.shape)
    (first, second), (to_first, to_second) = t.chunk(2, -1), turned.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return turned


def apply_rotary_pos_emb(t: torch.Tensor, freqs: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """t [s, b, n, d], angles freqs float32 [s, 1, 1, d] whose halves are equal -> [s, b, n, d]. Not for `interleaved`."""
    angles = freqs.chunk(2, -1)[0]
    return _Rotation.apply(t, angles.cos().to(t.dtype), angles.sin().to(t.dtype))


class _SwiGLU(torch.autograd.Function):
    """silu(gate) · up. Gradients are written side by side, where autograd would join two."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_and_up.chunk(2, -1)
        silu = F.silu(gate)
        ctx.save_for_backward(gate_and_up, silu)
        return silu * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        gate_and_up, silu = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        grads = torch.empty_like(gate_and_up)
        grad_of_gate, grad_of_up = grads.chunk(2, -1)
        torch.mul(grad, silu, out=grad_of_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_of_gate)
        return grads


def bias_swiglu(gate_and_up: torch.Tensor, bias: torch.Tensor | None, *_: Any) -> torch.Tensor:
    """[..., 2f] -> [..., f]: silu of the first half times the second, after adding `bias` [2f]."""
    return _SwiGLU.apply(gate_and_up if bias is None else gate_and_up + bias)


class _GeGLU(torch.autograd.Function):
    """gelu(gate) · up, gelu approximated by tanh."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_and_up.chunk(2, -1)
        gelu = F.gelu(gate, approximate="tanh")
        ctx.save_for_backward(gate_and_up, gelu)
        return gelu * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        gate_and_up, gelu = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        grads = torch.empty_like(gate_and_up)
        grad_of_gate, grad_of_up = grads.chunk(2, -1)
        torch.mul(grad, gelu, out=grad_of_up)
        torch.ops.aten.gelu_backward.grad_input(grad * up, gate, approximate="tanh", grad_input=grad_of_gate)
        return grads


def bias_geglu(gate_and_up: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[..., 2f] -> [..., f]: gelu of the first half times the second, after adding `bias` [2f]."""
    return _GeGLU.apply(gate_and_up if bias is None else gate_and_up + bias)


class _RMSNorm(torch.autograd.Function):
    """Autograd would keep and pass over five tensors of x's size. With r = 1 / sqrt(mean(x²) + eps), over n values:
    dx = r · (w · dy) - x · r³ / n · Σ(w · dy · x) and dw = Σ(r · dy · x) over the positions, two products with dy · x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        values = x.float()
        mean_square = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_().div_(x.size(-1))
        r = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (values * r).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, r = ctx.saved_tensors
        dy, values, w = grad.float(), x.float(), weight.float()
        products = (dy * values).flatten(0, -2)
        of_weight = r.flatten() @ products
        pull = (products @ w).view(r.shape).mul_(r.pow(3)).div_(x.size(-1))
        of_x = (dy * r).mul_(w).addcmul_(values, pull, value=-1)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., h] / sqrt(mean(x²) + eps) · weight [h], computed in float32; dtype of x."""
    return _RMSNorm.apply(x, weight, eps)


class WeightGradient:
    """In place of apex' `fused_weight_gradient_mlp_cuda`: a matrix product that adds to the gradient buffer."""

    @staticmethod
    def wgrad_gemm_accum_fp32(total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
        """main_grad float32 [out, in] += grad_outputᵀ [out, t] · total_input [t, in]."""
        if total_input.dtype == torch.float32:
            main_grad.addmm_(grad_output.t(), total_input)
        else:
            main_grad.add_(grad_output.t() @ total_input)
