"""What a check of a cluster looks at and what it finds. Free of torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClusterSettings:
    """What is checked, and what is good enough."""

    directory: str = "."
    """A folder that all nodes share, such as the parent of the run directory."""
    device: str = "auto"
    """auto, cpu or cuda."""
    attention: str = "auto"
    """As model.attention of a run: transformer_engine, flash_attn, torch, or auto; its isolation of documents is proved."""
    message_mib: int | None = None
    """Size of each rank's message for the bandwidth; default 256 on GPUs, 4 on CPUs."""
    min_bus_gb_per_s: float | None = None
    """All-reduce over all ranks must reach this bus bandwidth; default: it is only reported."""
    max_clock_skew_s: float = 1.0
    """Clocks may differ by this much; logs and time limits of several nodes are compared by their clocks."""
    wait_s: float = 30.0
    """A file must be seen on other nodes after this long."""
    timeout_minutes: float = 3.0
    """After this long a rank that does not answer is reported lost."""


@dataclass(frozen=True)
class Finding:
    """One result. verdict: "pass", "warn" or "fail"."""

    name: str
    verdict: str
    text: str
