"""GPUs that a run can be planned for: memory, peak rates and links from their data sheets.

Invariant: memory is what torch reports as the device's total, not the number on the label; rates are dense, without
sparsity, and bf16 peaks come from the one table in models/core/flops.py. What a program reaches of them, efficiency.py
says.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core.flops import PEAK_BF16_FLOPS_PER_S

_PCIE4, _PCIE5 = 32e9, 64e9


@dataclass(frozen=True)
class Gpu:
    """One device: its name on the command line and its data sheet."""

    name: str
    memory_gib: float
    peak_flops_per_s: float
    """Matrix products in bf16."""
    peak_fp8_flops_per_s: float | None
    """None: it has no fp8."""
    peak_fp32_flops_per_s: float
    """Without tensor cores, as precision fp32 computes."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """To the other GPUs of its node, one direction, all links together: NVLink, or PCIe without it."""
    power_w: float
    """Limit of the whole board."""
    generation: str
    """ampere, hopper or blackwell: which measured efficiencies apply."""


def _gpu(
    name: str, memory_gib: float, peak: str, fp8: float | None, fp32: float, memory: float, link: float, power_w: float
) -> Gpu:
    generation = {"A": "ampere", "H": "hopper", "G": "hopper", "B": "blackwell"}[peak[0]]
    rate = PEAK_BF16_FLOPS_PER_S[peak]
    return Gpu(name, memory_gib, rate, fp8, fp32, memory, link, power_w, generation)


# memory GiB, bf16 row of flops.py, fp8 and fp32 FLOP/s, memory and link bytes/s, W. Links: NVLink 3 has 300 GB/s a
# direction, NVLink 4 450, NVLink 5 900; A800 and H800 have fewer; cards without a switch speak over PCIe.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40gb", 39.4, "A100", None, 19.5e12, 1.555e12, 300e9, 400),
        _gpu("a100-80gb", 79.1, "A100", None, 19.5e12, 2.039e12, 300e9, 400),
        _gpu("a100-pcie", 79.1, "A100", None, 19.5e12, 1.935e12, _PCIE4, 300),
        _gpu("a800-80gb", 79.1, "A800", None, 19.5e12, 2.039e12, 200e9, 400),
        _gpu("h100", 79.1, "H100", 1979e12, 67e12, 3.35e12, 450e9, 700),
        _gpu("h100-pcie", 79.1, "H100 PCIe", 1513e12, 51e12, 2.0e12, _PCIE5, 350),
        _gpu("h100-nvl", 93.0, "H100 NVL", 1671e12, 60e12, 3.9e12, _PCIE5, 400),
        _gpu("h800", 79.1, "H800", 1979e12, 67e12, 3.35e12, 200e9, 700),
        _gpu("h200", 139.0, "H200", 1979e12, 67e12, 4.8e12, 450e9, 700),
        _gpu("gh200", 94.0, "GH200", 1979e12, 67e12, 4.0e12, 450e9, 900),
        _gpu("b200", 178.0, "B200", 4500e12, 75e12, 7.7e12, 900e9, 1000),
    )
}


def get_gpu(name: str) -> Gpu:
    """Raises: ConfigError naming the GPUs that are known."""
    if name not in GPUS:
        raise ConfigError(f"unknown GPU: got {name!r}, need one of {', '.join(GPUS)} (--gpu).")
    return GPUS[name]
