"""Proof, at every start and in the check of a cluster, that the attention in use keeps the documents of a row apart.

Attention backends are chosen by what is installed, and a wrong version or an unfused fallback is silent: losses fall all the
same. So the modules that the run has built, one of each kind of layer, are asked with their own heads and type. The gradient
that one document's outputs send to the queries, keys and values of another is exactly zero; each document alone gives what it
gave in the row, within the rounding of the type; and in a layer with a sliding window a token reaches the farthest one inside
it, and none before.
"""

from __future__ import annotations

import megatron_huatuo.parallel.import_core  # noqa: F401 (first)

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.attention_backend import choose_backend, core_attention
from megatron_huatuo.models.core.build_model import transformer_config
from megatron_huatuo.models.core.decoder_layer import layer_window
from megatron_huatuo.models.core.gpt import PackedGPTModel

# Lengths around the block sizes of kernels, one token among them; together a row of 512.
_LENGTHS = (1, 130, 64, 200, 117)
_ASKED = 2
# Largest difference, relative to the largest output: sums of up to 200 products, rounded to 2^-8 or 2^-24.
_TOLERANCES = {torch.bfloat16: 2e-2, torch.float32: 2e-5}


@dataclass(frozen=True)
class Isolation:
    """What was found. leak: largest absolute gradient that reached another document, or a token before the window;
    difference: of a document alone from itself in the row, relative to the largest output. windows: of the kinds of layers
    that were tried, None for a global one."""

    backend: str
    leak: float
    difference: float
    tolerance: float
    seconds: float
    windows: tuple[int | None, ...]

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def prove_isolation(model: PackedGPTModel, device: torch.device) -> Isolation | None:
    """Try the core attention of the first layer of each kind in a model chunk; None when the chunk has no layer.

    Costs a few milliseconds on a warm GPU and less than a second on a CPU. Raises: ConfigError naming the backend.
    """
    if not len(model.decoder.layers):
        return None
    kinds = {
        layer_window(model.config, layer.layer_number): layer.self_attention.core_attention
        for layer in reversed(model.decoder.layers)
    }
    return _prove(model.attention_backend, model.config, kinds, device)


def prove_backend(
    architecture: Architecture, attention: str, precision: str, device: torch.device, group: dist.ProcessGroup
) -> Isolation:
    """The same for the attention that a run of `architecture` would choose here, without building a model.

    attention, precision: as for `build_model`. group: of this rank alone. Raises: ConfigError naming the backend.
    """
    config = transformer_config(architecture, precision=precision, use_cpu_initialization=device.type == "cpu")
    backend = choose_backend(attention, device=device.type, alibi=architecture.alibi, precision=precision)
    build = core_attention(backend, device=device.type, alibi=architecture.alibi)
    groups = ProcessGroupCollection(tp=group, cp=group)
    first = {layer_window(config, number): number for number in range(architecture.num_layers, 0, -1)}
    kinds = {
        window: build(
            config=config,
            layer_number=number,
            attn_mask_type=AttnMaskType.causal,
            attention_type="self",
            pg_collection=groups,
        )
        for window, number in first.items()
    }
    return _prove(backend, config, kinds, device)


def _prove(backend: str, config: TransformerConfig, kinds: Mapping[int | None, Any], device: torch.device) -> Isolation:
    """kinds: core attention by the window of its layers."""
    began = time.perf_counter()
    leak = difference = 0.0
    for window, attention in kinds.items():
        found_leak, found_difference = _between_documents(config, attention, device)
        if window is not None:
            found_leak = _larger(found_leak, _before_window(backend, config, attention, window, device))
        leak, difference = _larger(leak, found_leak), _larger(difference, found_difference)
    seconds = time.perf_counter() - began
    found = Isolation(backend, leak, difference, _TOLERANCES[config.params_dtype], seconds, tuple(kinds))
    _refuse(found)
    return found


def _larger(one: float, other: float) -> float:
    """NaN where one of them is."""
    return one if one > other or one != one else other


def _between_documents(config: TransformerConfig, attention: Any, device: torch.device) -> tuple[float, float]:
    """(leak, difference) of one document of a row."""
    row = _random_row(config, device, sum(_LENGTHS))
    packed = _attend(attention, row, _LENGTHS)
    first = sum(_LENGTHS[:_ASKED])
    inside = slice(first, first + _LENGTHS[_ASKED])
    packed[inside].float().square().sum().backward()
    leak = max(_outside(tensor.grad, inside) for tensor in row)
    with torch.no_grad():
        alone = _attend(attention, [tensor[inside] for tensor in row], (_LENGTHS[_ASKED],))
        wanted = packed[inside].float()
        difference = float((alone.float() - wanted).abs().max() / wanted.abs().max())
    return leak, difference


def _before_window(backend: str, config: TransformerConfig, attention: Any, window: int, device: torch.device) -> float:
    """Largest gradient that the last token of a document longer than the window sends to values before it. Raises:
    ConfigError when the farthest value inside gets none."""
    length = window + _LENGTHS[_ASKED]
    row = _random_row(config, device, length)
    _attend(attention, row, (length,))[-1].float().sum().backward()
    gradient = row[2].grad
    if gradient is None:
        return float("nan")
    if not gradient[length - window].abs().max() > 0:
        raise ConfigError(
            f"attention {backend!r} has another window: the token {window} before the end of a document got no "
            f"gradient, need one from a window of {window}. Choose another with model.attention (torch always can)."
        )
    return float(gradient[: length - window].abs().max())


def _random_row(config: TransformerConfig, device: torch.device, length: int) -> list[torch.Tensor]:
    """Queries, keys and values [length, 1, heads of this rank, head_dim] that want a gradient."""
    ranks = config.tensor_model_parallel_size
    heads = (config.num_attention_heads // ranks, max(1, config.num_query_groups // ranks))
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(length, 1, count, config.kv_channels, generator=generator)
        .to(device, config.params_dtype)
        .requires_grad_()
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
        problem = f"a gradient of {found.leak:.3g} reaches another document, or a token before a window; need exactly 0"
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
