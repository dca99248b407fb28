"""GPUs that a run can be planned for.

Invariant: memory is what torch reports as the device's total, not the number on the label; peak rates come from the one
table in model/flops.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core.flops import PEAK_BF16_FLOPS_PER_S


@dataclass(frozen=True)
class Gpu:
    """One device: its name on the command line, its memory, its peak dense bf16 rate."""

    name: str
    memory_gib: float
    peak_flops_per_s: float


GPUS = {
    name: Gpu(name, memory_gib, PEAK_BF16_FLOPS_PER_S[peak])
    for name, memory_gib, peak in (
        ("a100-40gb", 39.4, "A100"),
        ("a100-80gb", 79.1, "A100"),
        ("a800-80gb", 79.1, "A800"),
        ("h100", 79.1, "H100"),
        ("h100-pcie", 79.1, "H100 PCIe"),
        ("h100-nvl", 93.0, "H100 NVL"),
        ("h800", 79.1, "H800"),
        ("h200", 139.0, "H200"),
        ("gh200", 94.0, "GH200"),
    )
}


def get_gpu(name: str) -> Gpu:
    """Raises: ConfigError naming the GPUs that are known."""
    if name not in GPUS:
        raise ConfigError(f"unknown GPU: got {name!r}, need one of {', '.join(GPUS)} (--gpu).")
    return GPUS[name]
