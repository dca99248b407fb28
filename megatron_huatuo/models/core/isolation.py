"""Proof, at every start, that the attention in use keeps the documents of a row apart.

Attention backends are chosen by what is installed, and a wrong version or an unfused fallback is silent: losses fall all the
same. So the module that the run has built is asked, with its own heads and type, for two things. The gradient that one
document's outputs send to the queries, keys and values of another is exactly zero; and each document alone gives what it
gave in the row, within the rounding of the type.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core.gpt import PackedGPTModel

# Lengths around the block sizes of kernels, one token among them; together a row of 512.
_LENGTHS = (1, 130, 64, 200, 117)
_ASKED = 2
# Largest difference, relative to the largest output: sums of up to 200 products, rounded to 2^-8 or 2^-24.
_TOLERANCES = {torch.bfloat16: 2e-2, torch.float32: 2e-5}


@dataclass(frozen=True)
class Isolation:
    """What was found. leak: largest absolute gradient that reached another document; difference: of a document alone from
    itself in the row, relative to the largest output."""

    backend: str
    leak: float
    difference: float
    tolerance: float
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def prove_isolation(model: PackedGPTModel, device: torch.device) -> Isolation | None:
    """Try the core attention of the first layer of a model chunk; None when the chunk has no layer.

    Costs a few milliseconds on a warm GPU and less than a second on a CPU. Raises: ConfigError naming the backend.
    """
    if not len(model.decoder.layers):
        return None
    began = time.perf_counter()
    attention = model.decoder.layers[0].self_attention.core_attention
    dtype = model.config.params_dtype
    row = _random_row(model, device, dtype)
    packed = _attend(attention, row, _LENGTHS)
    first = sum(_LENGTHS[:_ASKED])
    inside = slice(first, first + _LENGTHS[_ASKED])
    packed[inside].float().square().sum().backward()
    leak = max(_outside(tensor.grad, inside) for tensor in row)
    tolerance = _TOLERANCES[dtype]
    with torch.no_grad():
        alone = _attend(attention, [tensor[inside] for tensor in row], (_LENGTHS[_ASKED],))
        wanted = packed[inside].float()
        difference = float((alone.float() - wanted).abs().max() / wanted.abs().max())
    found = Isolation(model.attention_backend, leak, difference, tolerance, time.perf_counter() - began)
    _refuse(found)
    return found


def _random_row(model: PackedGPTModel, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values [s, 1, heads of this rank, head_dim] that want a gradient."""
    config = model.config
    ranks = config.tensor_model_parallel_size
    heads = (config.num_attention_heads // ranks, max(1, config.num_query_groups // ranks))
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(sum(_LENGTHS), 1, count, config.kv_channels, generator=generator).to(device, dtype).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]


def _attend(attention: Any, tensors: list[torch.Tensor], lengths: tuple[int, ...]) -> torch.Tensor:
    bounds = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    cu = torch.tensor(bounds, dtype=torch.int32, device=tensors[0].device)
    packed = PackedSeqParams("sbhd", cu, cu, max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths))
    output: torch.Tensor = attention(*tensors, None, AttnMaskType.causal, packed_seq_params=packed)
    return output


def _outside(gradient: torch.Tensor | None, inside: slice) -> float:
    if gradient is None:
        return float("nan")
    return float(torch.cat([gradient[: inside.start], gradient[inside.stop :]]).abs().max())


def _refuse(found: Isolation) -> None:
    problem = None
    if found.leak != 0.0:  # NaN, where no gradient came at all, is unequal too
        problem = f"a document sends a gradient of {found.leak:.3g} to another document of its row, need exactly 0"
    elif not found.difference <= found.tolerance:
        problem = (
            f"a document in a row differs from itself alone by {found.difference:.3g} of the largest output, need at most "
            f"{found.tolerance:g}"
        )
    if problem is not None:
        raise ConfigError(
            f"attention {found.backend!r} does not keep documents apart: {problem}. Choose another with model.attention "
            "(torch always can), or install a version of docs/support_matrix.md."
        )
