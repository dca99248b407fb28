"""Measured speeds in the place of assumed ones: a record of `benchmark.py train`, the output of `check_cluster.py`.

Invariant: a plan says which figures were measured and from which file; a measurement of another kind of device is
refused, never applied.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.plan.efficiency import Constants
from megatron_huatuo.plan.gpus import Gpu
from megatron_huatuo.plan.links import Links
from megatron_huatuo.plan.step_time import step_time
from megatron_huatuo.plan.workload import Workload

_WHOLE_ROWS = "whole rows"
_GENERATIONS = {"A100": "ampere", "A800": "ampere", "H100": "hopper", "H800": "hopper", "H200": "hopper",
                "GH200": "hopper", "B200": "blackwell"}  # fmt: skip
_BANDWIDTH = re.compile(
    r"^(?:pass|warn|fail)\s+(all-reduce|all-gather), (all ranks|each node)\s+([\d.]+) GB/s on the bus"
)
_RANKS = re.compile(r"^(?:pass|warn|fail)\s+ranks\s+(\d+) ranks on (\d+) nodes, (\d+) each")


@dataclass(frozen=True)
class Calibration:
    """What was measured. An empty one leaves every assumption as it is."""

    constants: Constants = field(default_factory=Constants)
    node_bytes_per_s: float | None = None
    """Bus bandwidth inside a node."""
    network_bytes_per_s: float | None = None
    """Share of one GPU in the bus bandwidth over all ranks."""
    notes: tuple[str, ...] = ()
    """Where each figure comes from."""

    def applied(self, links: Links) -> Links:
        """`links` with the bandwidths that were measured."""
        return dataclasses.replace(
            links,
            node_bytes_per_s=self.node_bytes_per_s or links.node_bytes_per_s,
            network_bytes_per_s=self.network_bytes_per_s or links.network_bytes_per_s,
        )


def read_calibration(files: Sequence[str], gpu: Gpu, links: Links) -> Calibration:
    """Read any number of records and outputs; later files win.

    Raises: ConfigError naming the file that is neither, or was measured on another kind of device.
    """
    calibration = Calibration()
    for name in files:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"calibration cannot be read: {name} ({error}). Check the path.") from error
        if text.lstrip().startswith(("[", "{")):
            calibration = _from_record(calibration, _parse(text, name), name, gpu, links)
        else:
            calibration = _from_cluster(calibration, text, name)
    return calibration


def _parse(text: str, name: str) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"calibration is not JSON: {name} ({error}). Measure again.") from error
    return content if isinstance(content, list) else [content]


def _from_record(
    calibration: Calibration, records: list[Mapping[str, Any]], name: str, gpu: Gpu, links: Links
) -> Calibration:
    """Scale products and attention until the plan of the measured run takes the measured time."""
    chosen = [
        record
        for record in records
        if isinstance(record, Mapping) and "workload" in record and str(record.get("name", "")).endswith(_WHOLE_ROWS)
    ]
    if not chosen:
        raise ConfigError(
            f"no training was measured: need a record of tools/benchmark.py train --json with 'workload' and {_WHOLE_ROWS!r} "
            f"in its name ({name})."
        )
    record = chosen[-1]
    described = dict(record["workload"])
    device = str(described.pop("device", ""))
    if _generation(device) != gpu.generation:
        raise ConfigError(
            f"wrong device of a calibration: measured on {device or 'an unknown device'}, but the plan is for {gpu.name} "
            f"({name}). Measure on the GPU that you plan for."
        )
    try:
        architecture = Architecture.from_dict(described.pop("architecture"))
        work = Workload(architecture=architecture, attended_length=float(described["seq_length"]), **described)
        measured_s = work.tokens_per_step / float(record["ours"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"record is incomplete: {error!r} in 'workload' ({name}). Measure again.") from error
    constants = _scaled_to(calibration.constants, work, gpu, links, measured_s, name)
    planned_s = step_time(work, gpu, links, calibration.constants).total
    note = (
        f"products and attention: {name}, {record['name']} on {device}: {measured_s:.4g} s per step where {planned_s:.4g} s "
        "were planned"
    )
    return dataclasses.replace(calibration, constants=constants, notes=(*calibration.notes, note))


def _generation(device: str) -> str | None:
    names = sorted(_GENERATIONS, key=len, reverse=True)
    return next((_GENERATIONS[name] for name in names if name in device), None)


def _scaled_to(constants: Constants, work: Workload, gpu: Gpu, links: Links, measured_s: float, name: str) -> Constants:
    """By bisection; the time falls as the factor grows."""
    affected = [
        key for key in ("products", "fp8_products", "attention") if hasattr(constants, f"{_prefix(gpu, key)}_{key}")
    ]

    def scaled(factor: float) -> Constants:
        names = {f"{_prefix(gpu, key)}_{key}" for key in affected}
        return dataclasses.replace(constants, **{each: getattr(constants, each) * factor for each in names})

    low, high = 0.05, 3.0
    if (
        not step_time(work, gpu, links, scaled(high)).total
        < measured_s
        < step_time(work, gpu, links, scaled(low)).total
    ):
        raise ConfigError(
            f"calibration is out of reach: {measured_s:.4g} s per step, need between "
            f"{step_time(work, gpu, links, scaled(high)).total:.4g} and {step_time(work, gpu, links, scaled(low)).total:.4g} "
            f"for this run ({name}). Check what else ran on the machine."
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if step_time(work, gpu, links, scaled(middle)).total > measured_s else (low, middle)
    return scaled((low + high) / 2)


def _prefix(gpu: Gpu, key: str) -> str:
    """B200's attention has Hopper's constant."""
    return "hopper" if key == "attention" and gpu.generation == "blackwell" else gpu.generation


def _from_cluster(calibration: Calibration, text: str, name: str) -> Calibration:
    lines = text.splitlines()
    ranks = next((match for line in lines if (match := _RANKS.match(line))), None)
    found = {(match[1], match[2]): float(match[3]) * 1e9 for line in lines if (match := _BANDWIDTH.match(line))}
    if ranks is None or not found:
        raise ConfigError(
            f"no calibration: need a record of tools/benchmark.py train --json, or the output of tools/check_cluster.py with "
            f"its lines on ranks and bandwidth ({name})."
        )
    if any("CPU" in line for line in lines if re.match(r"^(?:pass|warn|fail)\s+devices", line)):
        raise ConfigError(
            f"wrong device of a calibration: measured on CPUs ({name}). Run check_cluster.py on the GPUs."
        )
    nodes, each = int(ranks[2]), int(ranks[3])
    inside = "all ranks" if nodes == 1 else "each node"
    node = found.get(("all-gather", inside))
    over_all = found.get(("all-gather", "all ranks")) if nodes > 1 else None
    notes = []
    if node is not None:
        notes.append(f"links inside a node: {name}, {node / 1e9:.0f} GB/s on the bus")
    if over_all is not None:
        notes.append(f"network: {name}, {over_all / each / 1e9:.1f} GB/s per GPU over {nodes} nodes")
    return dataclasses.replace(
        calibration,
        node_bytes_per_s=node or calibration.node_bytes_per_s,
        network_bytes_per_s=over_all / each if over_all else calibration.network_bytes_per_s,
        notes=(*calibration.notes, *notes),
    )
