"""Plans of whole runs: sizes, time, cost, what is refused, and the tool."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core.flops import flops_per_token
from megatron_huatuo.models.families import presets
from megatron_huatuo.plan.costs import checkpoint_cost, run_cost
from megatron_huatuo.plan.gpus import get_gpu
from megatron_huatuo.plan.layouts import check_plan
from megatron_huatuo.plan.plan import Cluster, PlannedData, data_of_blend, plan_run
from megatron_huatuo.plan.plan_text import format_plan
from tests.unit.plan.plans import make_config, plan_7b

ROOT = Path(__file__).parents[3]


def test_7b_memory_by_hand() -> None:
    memory = plan_7b().memory
    parameters = 7_505_973_248
    assert memory.weights == 2 * parameters and memory.gradients == 4 * parameters
    assert memory.optimizer == 12 * parameters / 8


def test_a_save_of_7b_at_dp8_copies_each_parameter_once_to_host_memory() -> None:
    parameters = 7_505_973_248
    assert plan_7b().host_bytes_per_node == 14 * parameters  # weight, and the optimizer's copy and moments in float32
    assert plan_7b(tensor_model_parallel_size=2).host_bytes_per_node == 14 * parameters


def test_recomputation_lowers_memory_and_speed() -> None:
    plans = [plan_7b(recompute_granularity=granularity) for granularity in (None, "selective", "full")]
    activations = [plan.memory.activations for plan in plans]
    assert activations == sorted(activations, reverse=True) and len(set(activations)) == 3
    assert plans[2].mfu < plans[1].mfu < plans[0].mfu


def test_recomputed_mlp_drops_the_gated_unit() -> None:
    """6 · 11008 bytes a token and layer go."""
    plain, again = plan_7b(), plan_7b(recompute_granularity="selective", recompute_modules=["mlp"])
    assert plain.memory.activations - again.memory.activations == 4096 * 32 * 6 * 11008


def test_throughput_mfu_and_days_follow_from_the_step() -> None:
    plan = plan_7b(rows=128_000)
    flops = flops_per_token(presets()["baichuan2-7b"], 4096)
    assert plan.steps == 1000 and plan.run is not None
    assert plan.tokens_per_s_per_gpu == pytest.approx(128 * 4096 / plan.step_time_s / 8)
    assert plan.mfu == pytest.approx(plan.tokens_per_s_per_gpu * flops / 312e12)
    assert plan.step_time_s == pytest.approx(sum(plan.step.parts().values()))
    stalled = 500 * plan.step_time_s / (500 * plan.step_time_s + plan.checkpoint.stall_s)
    assert plan.run.days == pytest.approx(1000 * plan.step_time_s / stalled / 86400)
    assert f"{plan.run.days:.2f} days" in format_plan(plan)


def test_checkpoint_and_run_cost_by_hand() -> None:
    """14 bytes a weight; 8 GPUs copy at 20 GB/s each; 100 hours of 8 GPUs at 90 % of 400 W with 250 W of the host."""
    config, architecture = make_config(), presets()["baichuan2-7b"]
    checkpoint = checkpoint_cost(config, architecture, gpus=8, step_time_s=10.0, storage_bytes_per_s=5e9)
    size = 14 * 7_505_973_248
    assert checkpoint.size_bytes == size and checkpoint.write_s == size / 5e9
    assert checkpoint.stall_s == size / 8 / 20e9 and checkpoint.interval_s == 5000
    config.checkpoint.asynchronous = False
    waited = checkpoint_cost(config, architecture, gpus=8, step_time_s=10.0, storage_bytes_per_s=5e9)
    assert waited.stall_s == waited.write_s
    config.checkpoint.save_interval = None
    never = checkpoint_cost(config, architecture, gpus=8, step_time_s=10.0, storage_bytes_per_s=5e9)
    run = run_cost(get_gpu("a100-80gb"), 8, steps=36_000, step_time_s=10.0, checkpoint=never, usd_per_gpu_hour=2.0)
    assert run.gpu_hours == 800 and run.usd == 1600
    assert run.energy_kwh == pytest.approx(800 * (0.9 * 400 + 250) * 1.3 / 1000)


def test_money_is_counted_only_at_a_price() -> None:
    assert "USD" not in format_plan(plan_7b(rows=128_000))
    cluster = Cluster(get_gpu("a100-80gb"), 8, usd_per_gpu_hour=1.5)
    plan = plan_run(make_config(), cluster, PlannedData(128_000, 4096))
    assert plan.run is not None and plan.run.usd == pytest.approx(1.5 * plan.run.gpu_hours)
    assert f"money: {plan.run.usd:,.0f} USD at 1.5 per GPU-hour" in format_plan(plan)


def test_steps_are_unknown_without_rows() -> None:
    plan = plan_7b()
    assert plan.steps is None and plan.run is None
    assert "give --rows N for the whole run" in format_plan(plan)
    assert plan_7b(train_iters=10).steps == 10


def test_saves_slower_than_their_interval_are_said() -> None:
    config = make_config()
    config.checkpoint.save_interval = 1
    plan = plan_run(config, Cluster(get_gpu("h100"), 8, storage_gb_per_s=0.5), PlannedData(128_000, 4096))
    assert "SLOWER THAN THE INTERVAL" in format_plan(plan)


def test_host_memory_is_checked_when_it_is_known() -> None:
    cluster = Cluster(get_gpu("a100-80gb"), 8, host_memory_gib=64)
    plan = plan_run(make_config(tensor_model_parallel_size=2), cluster, PlannedData(None, 4096))
    with pytest.raises(ConfigError, match=r"saves need 98 GiB of host memory a node, got 64"):
        check_plan(plan)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 0}, "wrong --gpus: got 0, need 1 or more"),
        ({"gpus_per_node": 0}, "wrong --gpus-per-node: got 0, need 1 or more"),
        ({"network_gb_per_s": -1.0}, "wrong --network-gb-per-s: got -1.0, need a number above 0"),
        ({"storage_gb_per_s": 0.0}, "wrong --storage-gb-per-s: got 0.0, need a number above 0"),
        ({"usd_per_gpu_hour": float("nan")}, "wrong --usd-per-gpu-hour: got nan, need a number above 0"),
    ],
)
def test_nonsense_about_the_cluster_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(**{"gpu": get_gpu("h100"), "gpus": 8, **settings})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PlannedData(0, 4096), "wrong --rows: got 0, need 1 or more"),
        (PlannedData(8, 4096, 0.0), "wrong --document-tokens: got 0.0, need more than 0"),
    ],
)
def test_nonsense_about_the_data_is_refused(data: PlannedData, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_run(make_config(), Cluster(get_gpu("h100"), 8), data)


def test_slower_network_and_faster_one() -> None:
    config = make_config(tensor_model_parallel_size=2)
    config.parallel.overlap_grad_reduce = config.parallel.overlap_param_gather = True
    rates = [
        plan_run(config, Cluster(get_gpu("h100"), 64, network=name), PlannedData(None, 4096)).tokens_per_s_per_gpu
        for name in ("ethernet-25", "roce-200", "ib-ndr")
    ]
    assert rates == sorted(rates) and rates[2] > 1.5 * rates[0]


def test_rows_and_lengths_come_from_the_blend(sample_blend: Path) -> None:
    data = data_of_blend(str(sample_blend))
    assert data is not None and data.rows is not None and data.document_tokens is not None
    assert data.rows > 10 and data.seq_length == 256 and 10 < data.document_tokens < 256
    assert data_of_blend("no/such/blend") is None


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", str(ROOT / "tools" / "plan_run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_tool_prints_a_plan_without_loading_torch(tmp_path: Path) -> None:
    config = str(ROOT / "examples" / "huatuo2_7b" / "train.yaml")
    record = tmp_path / "plan.json"
    done = run_tool(
        *("--config", config, "--gpu", "a100-80gb", "--gpus", "8", "--rows", "1280000"),
        *("--usd-per-gpu-hour", "2", "--layouts", "--json", str(record)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("PLANNED, not measured.") and "10,000 steps" in done.stdout
    assert "LAYOUTS, planned:" in done.stdout and "too little GPU memory" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() in ("torch", "megatron.core")]
    plan = json.loads(record.read_text())
    assert {"step_time_s", "tokens_per_s_per_gpu", "mfu", "memory_gib", "layouts"} <= plan.keys()
    times = [layout["step_time_s"] for layout in plan["layouts"]]
    assert times == sorted(times) and len(times) > 20
    assert plan["step_time_s"] == pytest.approx(sum(plan["step_parts_s"].values()))
    assert all(refused["reason"] for refused in plan["refused"])


def test_tool_refuses_with_exit_code_one_after_showing_why(tmp_path: Path) -> None:
    record = tmp_path / "plan.json"
    done = run_tool("--model.preset", "yi-34b", "--gpu", "a100-40gb", "--gpus", "8", "--json", str(record))
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout and "error: run does not fit" in done.stderr
    assert "needs" in json.loads(record.read_text())["refusal"]
