"""On the CPU, what the kernels of transformer_engine_torch compute that a training of this project calls.

The mathematics is summed in float32 and rounded once, as the kernels do; names and arguments are those of Transformer Engine
2.11's extensions.h. KERNELS lists what takes the library's place; `extension.py` refuses everything else.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.te_on_host.reference import attend, attend_backward, require
from tests.te_on_host.report import note


def generic_gemm(
    a, transa, b, transb, out, quantizer, out_dtype, bias, bias_type, gelu, gelu_in, grad, workspace, workspace_size,
    accumulate, use_split_accumulator, *, extra_output=None, alpha=1.0, beta=None, **overlap,
):  # fmt: skip
    """A and B column-major, as cuBLAS sees them: the product of the row-major ones is op(B) · op(A)."""
    require(
        quantizer is None and not gelu and alpha == 1.0 and not any(overlap.values()), f"{quantizer} {gelu} {overlap}"
    )
    layout = ("T" if transa else "N") + ("T" if transb else "N")
    left, right = a.reshape(-1, a.shape[-1]).float(), b.reshape(-1, b.shape[-1]).float()
    bias_grad = None
    if layout == "NT":  # the gradient of a weight: left and right are inputs and gradients of the outputs
        result = right.t() @ left
        bias_grad = right.sum(0).to(b.dtype) if bias is not None and grad else None
    else:
        result = right @ (left.t() if transa else left)
        result = result.reshape(*b.shape[:-1], result.shape[-1])
        if bias is not None and not grad:
            result = result + bias.float()
    note("gemm", layout, "accumulates" if accumulate else "writes", str(a.dtype))
    if out is None:
        return result.to(_TORCH_TYPES.get(out_dtype, a.dtype)), bias_grad, None, extra_output
    if accumulate:
        out.add_(result)
    else:
        out.copy_(result)
    return out, bias_grad, None, extra_output


# By the numbers of DType in transformer_engine.h.
_TORCH_TYPES = {4: torch.float32, 6: torch.bfloat16}


def rmsnorm_fwd(x, weight, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma):
    """x [t, h] -> (normalised, None, 1 / root mean square float32 [t])."""
    require(quantizer is None, "no quantizer")
    rsigma = x.float().square().mean(-1).add(eps).rsqrt()
    gamma = weight.float() + 1 if zero_centered_gamma else weight.float()
    normed = (x.float() * rsigma[..., None] * gamma).to(x.dtype)
    note("norm", "rmsnorm", "zero-centred" if zero_centered_gamma else "plain")
    return (normed if ln_out is None else ln_out.copy_(normed)), None, rsigma


def rmsnorm_bwd(dz, x, rsigma, gamma, sm_margin, zero_centered_gamma):
    """(gradient of x, of gamma)."""
    scale = gamma.float() + 1 if zero_centered_gamma else gamma.float()
    unit, grad = x.float() * rsigma[..., None], dz.float().reshape(x.shape)
    weighted = grad * scale
    dx = rsigma[..., None] * (weighted - unit * (weighted * unit).mean(-1, keepdim=True))
    return dx.to(x.dtype), (grad * unit).reshape(-1, x.shape[-1]).sum(0).to(gamma.dtype)


def fused_rope_forward(t, freqs, start_positions, qkv_format, interleaved, cu_seqlens, cp_size, cp_rank):
    """t [s, b, n, d], freqs [s, 1, 1, r] with r <= d."""
    return _rotate(t, freqs, interleaved, cu_seqlens, 1)


def fused_rope_backward(grad, freqs, start_positions, qkv_format, interleaved, cu_seqlens, cp_size, cp_rank):
    """The same, turned back."""
    return _rotate(grad, freqs, interleaved, cu_seqlens, -1)


def _rotate(t, freqs, interleaved, cu_seqlens, sign):
    require(not interleaved and cu_seqlens is None, "rows of plain positions")
    note("rope", "fused")
    angles, width = freqs[: t.shape[0]].float(), freqs.shape[-1]
    turned, rest = t[..., :width].float(), t[..., width:]
    first, second = turned.chunk(2, -1)
    turned = turned * angles.cos() + torch.cat((-second, first), -1) * (angles.sin() * sign)
    return torch.cat((turned.to(t.dtype), rest), -1)


def fused_attn_fwd(
    max_seqlen_q, max_seqlen_kv, is_training, attn_scale, p_dropout, set_zero, qkv_layout, bias_type, attn_mask_type,
    softmax_type, window_size, cu_seqlens_q, cu_seqlens_kv, q, k, v, fake_dtype, cu_seqlens_q_padded, cu_seqlens_kv_padded,
    *others,
):  # fmt: skip
    """cuDNN's fused attention on packed documents, q [t, n, d]; scores of one document at a time."""
    _check_packed(qkv_layout, bias_type, attn_mask_type, q, cu_seqlens_q, cu_seqlens_kv)
    longest = int((cu_seqlens_q[1:] - cu_seqlens_q[:-1]).max())
    require(longest <= max_seqlen_q == max_seqlen_kv, f"longest document {longest} {max_seqlen_q} {max_seqlen_kv}")
    context = attend(q, k, v, cu_seqlens_q, attn_scale, _window(window_size))
    return [context, torch.zeros(1), torch.zeros(2, dtype=torch.int64)]


def fused_attn_bwd(
    max_seqlen_q, max_seqlen_kv, attn_scale, p_dropout, set_zero, qkv_layout, bias_type, attn_mask_type, softmax_type,
    window_size, deterministic, cu_seqlens_q, cu_seqlens_kv, q, k, v, o, do, *others,
):  # fmt: skip
    """(gradients of q, k, v, None, None)."""
    _check_packed(qkv_layout, bias_type, attn_mask_type, q, cu_seqlens_q, cu_seqlens_kv)
    return [*attend_backward(do, q, k, v, cu_seqlens_q, attn_scale, _window(window_size)), None, None]


def _window(window_size) -> int | None:
    require(window_size[1] == 0, f"causal window {window_size}")
    return None if window_size[0] < 0 else window_size[0] + 1


def _check_packed(qkv_layout, bias_type, attn_mask_type, q, cu_seqlens_q, cu_seqlens_kv):
    names = (qkv_layout.name, bias_type.name, attn_mask_type.name)
    require(names == ("NVTE_THD_THD_THD", "NVTE_NO_BIAS", "NVTE_PADDING_CAUSAL_MASK"), f"packed documents {names}")
    require(q.dim() == 3 and cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_kv), "lengths")
    require(int(cu_seqlens_q[0]) == 0 and int(cu_seqlens_q[-1]) == q.shape[0], "documents that cover the rows")


def multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor=False):
    """(norm of all float32 [1], None)."""
    return torch.stack([tensor.float().norm() for tensor in tensor_lists[0]]).norm().reshape(1), None


def multi_tensor_scale(chunk_size, noop_flag, tensor_lists, scale):
    """Second list := first · scale."""
    for source, target in zip(*tensor_lists, strict=True):
        target.copy_(source * scale)


def multi_tensor_adam(
    chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay
):
    """Gradients, weights, first and second moments, in place; mode 1: decoupled weight decay."""
    require(mode == 1, f"decoupled weight decay {mode}")
    note("adam", "Transformer Engine")
    first, second = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
    for grad, weight, mean, square in zip(*tensor_lists[:4], strict=True):
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        weight.add_((mean / first) / ((square / second).sqrt() + epsilon) + weight_decay * weight, alpha=-lr)


def get_num_cublas_streams() -> int:
    """As on a GPU."""
    return 4


def device_supports_multicast(*device: Any) -> bool:
    """Asked while buffers of overlap are made."""
    return False


KERNELS = (
    generic_gemm,
    rmsnorm_fwd,
    rmsnorm_bwd,
    fused_rope_forward,
    fused_rope_backward,
    fused_attn_fwd,
    fused_attn_bwd,
    multi_tensor_l2norm,
    multi_tensor_scale,
    multi_tensor_adam,
    get_num_cublas_streams,
    device_supports_multicast,
)
