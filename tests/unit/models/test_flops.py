"""FLOPs by hand, parameter counts against the published models, and the table of peaks."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_huatuo.models.core.flops import count_parameters, flops_per_token, peak_flops_per_s
from megatron_huatuo.models.families import get_preset


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("baichuan2-7b", 7_505_973_248),
        ("baichuan2-13b", 13_896_668_160),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3-8b", 8_030_261_248),
        ("yi-34b", 34_388_917_248),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-32b", 32_762_123_264),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-nemo-12b", 12_247_782_400),
        ("gemma-3-1b", 999_885_952),
        ("gemma-3-4b", 3_880_263_168),
    ],
)
def test_parameters_are_those_of_the_published_models(preset: str, parameters: int) -> None:
    assert count_parameters(get_preset(preset)) == parameters


def test_flops_of_the_toy_model_by_hand() -> None:
    """Per layer: attention 192·(2·192 + 2·2·32) = 98,304, MLP 3·192·512 = 294,912; output 3,072·192 = 589,824."""
    products = 2 * (98_304 + 294_912) + 589_824
    assert flops_per_token(get_preset("toy"), 256) == 6 * products + 12 * 2 * 192 * 256


def test_tied_embeddings_count_once_as_parameters_and_once_as_a_product() -> None:
    toy = get_preset("toy")
    tied = dataclasses.replace(toy, tied_embeddings=True)
    assert count_parameters(toy) - count_parameters(tied) == 3072 * 192
    assert flops_per_token(tied, 256) == flops_per_token(toy, 256)


def test_local_layers_attend_to_their_window_alone() -> None:
    windowed = dataclasses.replace(get_preset("toy"), sliding_window=64, global_every=2)
    saved = 12 * 192 * (256 - 64)
    assert flops_per_token(get_preset("toy"), 256) - flops_per_token(windowed, 256) == saved
    assert flops_per_token(windowed, 64) == flops_per_token(get_preset("toy"), 64)


def test_flops_of_7b_are_near_six_times_its_parameters() -> None:
    architecture = get_preset("llama-2-7b")
    attention = 12 * 32 * 4096 * 4096
    assert flops_per_token(architecture, 4096) == pytest.approx(6 * 6.607e9 + attention, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
    ],
)
def test_peaks_are_dense_bf16_rates(name: str, tflops: float) -> None:
    assert peak_flops_per_s(name) == tflops * 1e12


def test_unknown_devices_have_no_peak() -> None:
    assert peak_flops_per_s("NVIDIA GeForce RTX 4090") is None
