"""Measured speeds in a plan: the planned time becomes the measured one, and a foreign measurement is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.plan.calibration import read_calibration
from megatron_huatuo.plan.efficiency import Constants
from megatron_huatuo.plan.gpus import GPUS, get_gpu
from megatron_huatuo.plan.links import Links
from megatron_huatuo.plan.plan import Cluster, PlannedData, plan_run
from megatron_huatuo.plan.plan_text import format_plan
from megatron_huatuo.plan.step_time import step_time
from megatron_huatuo.plan.workload import Workload
from tests.unit.plan.plans import make_config

H100 = get_gpu("h100")
H100_NAME = "NVIDIA H100 80GB HBM3"
LINKS = Links.of(H100, 50e9, 8, Constants())
CLUSTER_OUTPUT = """\
pass  ranks                     16 ranks on 2 nodes, 8 each
pass  devices                   NVIDIA H100 80GB HBM3 79.1 GiB (ranks 0-15)
pass  all-reduce, all ranks     352.10 GB/s on the bus, 1.43 ms for 256 MiB per rank
pass  all-gather, all ranks     320.00 GB/s on the bus, 11.70 ms for 256 MiB per rank
pass  all-reduce, each node     412.00 GB/s on the bus, 1.14 ms for 256 MiB per rank
warn  all-gather, each node     300.00 GB/s on the bus, 5.30 ms for 256 MiB per rank; node-b is the slowest, at less than half of the others
READY
"""


def train_records(device: str, seconds: float) -> list[dict[str, Any]]:
    """Records as `benchmark.py train` writes them, of one card that took that long for a step."""
    from benchmarks.train import SIZES, _records

    timings = {"first_loss": {"whole rows": 10.0, "transformers": 10.0}}
    names = ("whole rows", "isolated documents", "transformers")
    for field in ("wall_s", "cpu_s", "core_s"):
        timings[field] = {name: [seconds] * 3 for name in names}  # type: ignore[assignment]
    records = _records(timings, "7b-cut", SIZES["7b-cut"], ranks=1, steps=1, kind="cpu")
    for record in records:
        if "workload" in record:
            record["workload"].update(device=device, precision="bf16")
    return records


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def workload_of(records: list[dict[str, Any]]) -> Workload:
    """The run that a record describes."""
    described = {key: value for key, value in records[0]["workload"].items() if key != "device"}
    architecture = Architecture.from_dict(described.pop("architecture"))
    return Workload(architecture=architecture, attended_length=float(described["seq_length"]), **described)


def test_records_of_training_have_the_promised_keys_and_can_be_compared(tmp_path: Path) -> None:
    from benchmarks.compare import compare_records

    records = train_records(H100_NAME, 1.0)
    keys = {"name", "ours", "peer", "ratio", "unit", "runs", "machine", "versions", "command"}
    assert all(keys <= record.keys() for record in records)
    files = [write(tmp_path / f"{seconds}.json", train_records(H100_NAME, seconds)) for seconds in (1.0, 2.0)]
    assert {change.verdict for change in compare_records(*files)} == {"within noise"}  # the peer is as slow


@pytest.mark.parametrize("factor", [0.7, 1.0, 2.0])
def test_the_measured_run_is_planned_to_take_the_measured_time(tmp_path: Path, factor: float) -> None:
    work = workload_of(train_records(H100_NAME, 1.0))
    measured_s = factor * step_time(work, H100, LINKS).total
    file = write(tmp_path / "train.json", train_records(H100_NAME, measured_s))
    calibration = read_calibration([file], H100, LINKS)
    assert step_time(work, H100, LINKS, calibration.constants).total == pytest.approx(measured_s, rel=1e-6)
    assert H100_NAME in calibration.notes[0] and "train.json" in calibration.notes[0]


def test_a_slower_card_slows_the_plan_and_the_plan_says_so(tmp_path: Path) -> None:
    slow = write(tmp_path / "slow.json", train_records(H100_NAME, 3.0))
    cluster = Cluster(H100, 8)
    calibrated = dataclasses.replace(cluster, calibration=read_calibration([slow], H100, cluster.links()))
    config = make_config(tensor_model_parallel_size=2)
    plans = [plan_run(config, each, PlannedData(None, 4096)) for each in (cluster, calibrated)]
    assert plans[1].step_time_s > 1.3 * plans[0].step_time_s
    assert "measured: products and attention" in format_plan(plans[1])
    assert "nothing measured on these machines" in format_plan(plans[0])


def test_bandwidths_come_from_the_output_of_check_cluster(tmp_path: Path) -> None:
    output = write(tmp_path / "cluster.txt", CLUSTER_OUTPUT)
    calibration = read_calibration([output], H100, LINKS)
    links = calibration.applied(LINKS)
    assert links.node_bytes_per_s == 300e9 and links.network_bytes_per_s == 40e9  # 320 by 8 adapters
    assert len(calibration.notes) == 2


def test_the_output_of_check_cluster_is_what_it_prints(tmp_path: Path) -> None:
    """The lines above, by the function that prints them."""
    from megatron_huatuo.cluster.check import format_findings
    from megatron_huatuo.cluster.cluster_settings import Finding

    findings = [
        Finding("ranks", "pass", "8 ranks on 1 nodes, 8 each"),
        Finding("devices", "pass", "NVIDIA H100 80GB HBM3 79.1 GiB (ranks 0-7)"),
        Finding("all-gather, all ranks", "pass", "333.00 GB/s on the bus, 5.64 ms for 256 MiB per rank"),
    ]
    calibration = read_calibration([write(tmp_path / "one.txt", format_findings(findings))], H100, LINKS)
    assert calibration.node_bytes_per_s == 333e9 and calibration.network_bytes_per_s is None


def test_several_files_add_up(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "train.json", train_records("NVIDIA H200", 0.6)),
        write(tmp_path / "cluster.txt", CLUSTER_OUTPUT),
    ]
    calibration = read_calibration(files, H100, LINKS)  # H200 computes as H100 does
    assert len(calibration.notes) == 3 and calibration.node_bytes_per_s == 300e9


@pytest.mark.parametrize(
    ("device", "seconds", "message"),
    [
        ("CPU x86_64", 1.0, r"wrong device of a calibration: measured on CPU x86_64, but the plan is for h100"),
        ("NVIDIA A100-SXM4-80GB", 1.0, r"measured on NVIDIA A100-SXM4-80GB, but the plan is for h100"),
        (H100_NAME, 900.0, r"calibration is out of reach: 900 s per step, need between"),
    ],
)
def test_a_measurement_of_another_machine_is_refused(tmp_path: Path, device: str, seconds: float, message: str) -> None:
    file = write(tmp_path / "train.json", train_records(device, seconds))
    with pytest.raises(ConfigError, match=message):
        read_calibration([file], H100, LINKS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"name": "blend"}], r"no training was measured: need a record of tools/benchmark\.py train --json"),
        ([{"name": "train, whole rows", "workload": {"device": "H100"}}], r"record is incomplete: KeyError"),
        ("[1, 2", r"calibration is not JSON"),
        ("READY\n", r"no calibration: need a record of .* or the output of tools/check_cluster\.py"),
        (CLUSTER_OUTPUT.replace("NVIDIA H100 80GB HBM3 79.1 GiB", "CPU x86_64"), r"measured on CPUs"),
    ],
)
def test_what_is_no_measurement_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_calibration([write(tmp_path / "file", content)], H100, LINKS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"calibration cannot be read: .*nowhere\.json"):
        read_calibration([str(tmp_path / "nowhere.json")], H100, LINKS)


def test_every_gpu_generation_can_be_calibrated() -> None:
    from megatron_huatuo.plan.calibration import _GENERATIONS

    assert set(_GENERATIONS.values()) == {gpu.generation for gpu in GPUS.values()}
