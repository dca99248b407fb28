"""Packed attention: documents are alone in their row, whatever the kernel; ALiBi as published."""

from __future__ import annotations

import doctest

import pytest
import torch
from packaging.version import Version

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core import alibi, attention_backend
from megatron_huatuo.models.core.attention import AttendedSegments
from megatron_huatuo.models.core.attention_backend import choose_backend
from megatron_huatuo.models.core.attention_flex import attend_with_flex
from megatron_huatuo.models.core.attention_torch import attend_by_document
from tests.unit.models.baichuan_oracle import SLOPES_OF_40_HEADS, attend, slopes

LENGTHS = [1, 37, 2, 60, 28]  # 128 tokens; the first document has one


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], AttendedSegments]:
    torch.manual_seed(5)
    tensors = [torch.randn(sum(LENGTHS), heads, 16).to(dtype) for heads in (6, 2, 2)]
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    return tensors, AttendedSegments(cu_seqlens, max(LENGTHS))


@pytest.mark.parametrize("with_alibi", [False, True])
def test_each_document_gets_what_it_gets_alone(with_alibi: bool) -> None:
    (query, key, value), segments = _inputs()
    of_heads = alibi.alibi_slopes(6) if with_alibi else None
    got = attend_by_document(query, key, value, segments, 0.25, of_heads)
    for start, length in zip(segments.cu_seqlens.tolist(), LENGTHS, strict=False):
        rows = slice(start, start + length)
        for head in range(6):
            slope = slopes(6)[head] if with_alibi else None
            expected = attend(query[rows, head], key[rows, head // 3], value[rows, head // 3], slope)
            torch.testing.assert_close(got[rows, head], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_alibi", [False, True])
def test_no_attention_across_documents(with_alibi: bool) -> None:
    """Changing one document leaves the outputs and the gradients of the others bitwise unchanged."""
    of_heads = alibi.alibi_slopes(6) if with_alibi else None

    def run(changed: float) -> list[torch.Tensor]:
        tensors, segments = _inputs()
        for tensor in tensors:
            tensor[38:40] += changed  # the third document
            tensor.requires_grad_()
        output = attend_by_document(*tensors, segments, 0.25, of_heads)
        output.square().sum().backward()
        return [output.detach(), *(tensor.grad for tensor in tensors)]

    for before, after in zip(run(0.0), run(1.0), strict=True):
        assert torch.equal(before[:38], after[:38])
        assert torch.equal(before[40:], after[40:])
        assert not torch.equal(before[38:40], after[38:40])


@pytest.mark.parametrize("with_alibi", [False, True])
def test_flex_attention_agrees_with_attention_by_document(with_alibi: bool) -> None:
    tensors, segments = _inputs()
    of_heads = alibi.alibi_slopes(6) if with_alibi else None
    expected = attend_by_document(*tensors, segments, 0.25, of_heads)
    torch.testing.assert_close(attend_with_flex(*tensors, segments, 0.25, of_heads), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 28, 59, 60, 61])
def test_a_window_reaches_so_many_tokens_of_the_own_document(window: int) -> None:
    (query, key, value), segments = _inputs()
    tensors = [tensor.requires_grad_() for tensor in (query, key, value)]
    got = attend_by_document(*tensors, segments, 0.25, None, window)
    flex = attend_with_flex(*(tensor.detach() for tensor in tensors), segments, 0.25, None, window)
    torch.testing.assert_close(flex, got.detach(), rtol=1e-5, atol=1e-6)
    position = torch.arange(128)
    document = torch.searchsorted(segments.cu_seqlens, position.int(), right=True)
    distance = position[:, None] - position[None, :]
    allowed = (document[:, None] == document[None, :]) & (distance >= 0) & (distance < window)
    scores = torch.einsum("ind,jnd->nij", query, key.repeat_interleave(3, dim=1)) * 0.25
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    expected = torch.einsum("nij,jnd->ind", weights, value.repeat_interleave(3, dim=1))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    got[99].sum().backward()  # the last token of the fourth document, 40 … 99
    reached = value.grad.abs().sum((1, 2)).nonzero().flatten().tolist()
    assert reached == list(range(max(40, 100 - window), 100))


def test_alibi_in_bf16_keeps_the_distance_of_far_tokens() -> None:
    """Error against float32 at most twice that of rounding the inputs; a bf16 bias would be far beyond it."""
    torch.manual_seed(2)
    wide = [torch.randn(1024, 2, 16) for _ in range(3)]
    narrow = [tensor.bfloat16() for tensor in wide]
    segments = AttendedSegments(torch.tensor([0, 1024], dtype=torch.int32), 1024)
    of_heads = alibi.alibi_slopes(40)[:2]
    exact = attend_by_document(*wide, segments, 0.25, of_heads)
    rounded = attend_by_document(*(tensor.float() for tensor in narrow), segments, 0.25, of_heads)
    got = attend_by_document(*narrow, segments, 0.25, of_heads).float()
    assert (got - exact).norm() <= 2 * (rounded.bfloat16().float() - exact).norm()


def test_slopes_of_baichuan2_13b() -> None:
    assert alibi.alibi_slopes(40).tolist() == pytest.approx(SLOPES_OF_40_HEADS, rel=1e-6)
    for heads in (1, 2, 3, 5, 6, 12, 32, 56):
        assert alibi.alibi_slopes(heads).tolist() == pytest.approx(slopes(heads), rel=1e-6)
    assert doctest.testmod(alibi).failed == 0


def test_backend_is_chosen_by_device_and_need() -> None:
    assert choose_backend("auto", device="cpu", alibi=True, precision="bf16") == "torch"
    assert choose_backend("torch", device="cuda", alibi=False, precision="fp32") == "torch"
    with pytest.raises(ConfigError, match=r"got 'flash_attn', but it needs a GPU\. Use auto"):
        choose_backend("flash_attn", device="cpu", alibi=False, precision="bf16")
    with pytest.raises(ConfigError, match="got 'transformer_engine', but it needs precision bf16"):
        choose_backend("transformer_engine", device="cuda", alibi=False, precision="fp32")
    with pytest.raises(ConfigError, match="need one of auto, transformer_engine, flash_attn, torch"):
        choose_backend("xformers", device="cuda", alibi=False, precision="bf16")


@pytest.mark.parametrize(
    ("engine", "flash", "capability", "chosen"),
    [
        ("2.11.0", "2.8.3", (8, 0), "transformer_engine"),
        ("2.11.0", None, (8, 0), "torch"),  # it would fall back to its unfused kernel without a word
        ("2.11.0", "2.8.3.post2", (8, 0), "flash_attn"),
        ("2.11.0", None, (9, 0), "transformer_engine"),
        ("2.20.0", "2.8.3", (9, 0), "flash_attn"),
        ("2.8.0", "2.8.3", (9, 0), "flash_attn"),
        (None, "2.8.3", (9, 0), "flash_attn"),
    ],
)
def test_transformer_engine_is_taken_where_its_fused_kernels_fit(
    engine: str | None, flash: str | None, capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"transformer-engine": engine, "flash-attn": flash}
    monkeypatch.setattr(
        attention_backend, "_version_of", lambda name: Version(versions[name]) if versions[name] else None
    )
    monkeypatch.setattr(
        attention_backend,
        "import_obstacle",
        lambda module: None if versions[module.partition(".")[0].replace("_", "-")] else f"no {module}",
    )
    attention_backend.engine_version_obstacle.cache_clear()
    try:
        asked = {"device": "cuda", "alibi": False, "precision": "bf16", "capability": capability}
        assert choose_backend("auto", **asked) == chosen
        if engine and chosen != "transformer_engine":
            with pytest.raises(
                ConfigError, match=r"(flash-attn 2\.8\.3 at most, and there is|untested with megatron-core)"
            ):
                choose_backend("transformer_engine", **asked)
    finally:
        attention_backend.engine_version_obstacle.cache_clear()
