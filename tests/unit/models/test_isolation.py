"""The proof of every start: documents of a row are kept apart, and a backend that leaks is refused by name."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core.attention import AttendedSegments
from megatron_huatuo.models.core.attention_torch import attend_by_document
from megatron_huatuo.models.core.build_model import build_model
from megatron_huatuo.models.core.isolation import prove_isolation
from tests.unit.convert.small_models import SMALL

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "qwen2-tied", "baichuan2-alibi", "mistral-window", "gemma3"])
def test_the_attention_of_every_family_is_proved_apart(alone: None, name: str, precision: str) -> None:
    model = build_model(dataclasses.replace(SMALL[name], head_dim=64), precision=precision)
    found = prove_isolation(model, CPU)
    assert found is not None and found.leak == 0.0 and found.difference <= found.tolerance
    assert found.to_plain()["backend"] == "torch"
    assert all(parameter.grad is None for parameter in model.parameters())


def as_one_document(query: Any, key: Any, value: Any, segments: AttendedSegments, *rest: Any) -> torch.Tensor:
    whole = AttendedSegments(segments.cu_seqlens[[0, -1]], query.shape[0])
    return attend_by_document(query, key, value, whole, *rest)


def with_other_scale(
    query: Any, key: Any, value: Any, segments: AttendedSegments, scale: float, *rest: Any
) -> torch.Tensor:
    return attend_by_document(query, key, value, segments, scale * len(segments.cu_seqlens), *rest)


def without_gradient(*arguments: Any) -> torch.Tensor:
    leaf = attend_by_document(*arguments).detach().requires_grad_()
    return leaf * 1


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (as_one_document, r"a gradient of .* reaches another document, .* need exactly 0"),
        (with_other_scale, r"a document in a row differs from itself alone by .* need at most 2e-05"),
        (without_gradient, r"a gradient of nan reaches another document"),
    ],
)
def test_a_backend_that_leaks_is_refused_by_name(alone: None, kernel: Any, problem: str) -> None:
    model = build_model(SMALL["llama"])
    model.decoder.layers[0].self_attention.core_attention.kernel = kernel
    with pytest.raises(
        ConfigError, match=rf"attention 'torch' does not keep documents apart: {problem}.*model\.attention"
    ):
        prove_isolation(model, CPU)


def with_window(change: int) -> Any:
    def kernel(*arguments: Any) -> torch.Tensor:
        *rest, window = arguments
        return attend_by_document(*rest, None if window is None else window + change)

    return kernel


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (1, "does not keep documents apart: a gradient of .* reaches another document, or a token before a window"),
        (
            -1,
            "has another window: the token 7 before the end of a document got no gradient, need one from a window of 7",
        ),
    ],
)
def test_a_window_of_another_length_is_refused(alone: None, change: int, problem: str) -> None:
    model = build_model(SMALL["gemma3"])
    found = prove_isolation(model, CPU)
    assert found is not None and set(found.windows) == {7, None}
    model.decoder.layers[0].self_attention.core_attention.kernel = with_window(change)
    with pytest.raises(ConfigError, match=f"attention 'torch' {problem}"):
        prove_isolation(model, CPU)


def test_a_stage_without_layers_has_nothing_to_prove() -> None:
    assert prove_isolation(SimpleNamespace(decoder=SimpleNamespace(layers=[])), CPU) is None  # type: ignore[arg-type]
