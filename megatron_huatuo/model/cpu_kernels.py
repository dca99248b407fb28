"""What Transformer Engine and apex fuse on GPUs, in plain torch for the CPU: the same numbers in fewer passes over memory.

Invariant: each has the name, the arguments and the result of the kernel in whose place `host.enable_host()` puts it.
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


class WeightGradient:
    """In place of apex' `fused_weight_gradient_mlp_cuda`: a matrix product that adds to the gradient buffer."""

    @staticmethod
    def wgrad_gemm_accum_fp32(total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
        """main_grad float32 [out, in] += grad_outputᵀ [out, t] · total_input [t, in]."""
        if total_input.dtype == torch.float32:
            main_grad.addmm_(grad_output.t(), total_input)
        else:
            main_grad.add_(grad_output.t() @ total_input)
