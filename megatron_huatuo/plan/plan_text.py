"""A plan as text for a person, and as one JSON object for programs."""

from __future__ import annotations

from typing import Any

from megatron_huatuo.models.core.flops import count_parameters, flops_per_token
from megatron_huatuo.plan.costs import HOST_W_PER_GPU, POWER_SHARE, POWER_USAGE_EFFECTIVENESS
from megatron_huatuo.plan.layouts import Layouts, describe_layout, layout_name, layout_record
from megatron_huatuo.plan.memory import FRAGMENTATION, RESERVE_BYTES
from megatron_huatuo.plan.plan import GIB, Plan

_PARTS = {
    "products": "matrix products",
    "attention": "attention",
    "elementwise": "norms, rotation, gated unit, loss",
    "tensor_parallel": "tensor-parallel communication",
    "recomputation": "recomputation",
    "pipeline": "pipeline bubbles and transfers",
    "data_parallel": "gradient reduction, weight gathering",
    "optimizer": "optimizer",
    "host": "launches, logging, next batch",
}


def format_plan(plan: Plan) -> str:
    """All figures of a plan, headed by what they are."""
    return "\n".join([*_header(plan), "", *_memory(plan), "", *_host(plan), "", *_time(plan), "", *_cost(plan)])


def _header(plan: Plan) -> list[str]:
    config, cluster = plan.config, plan.cluster
    precision = config.training.number_formats
    return [
        "PLANNED, not measured.",
        f"{config.model.preset or config.model.hf}: {count_parameters(plan.architecture):,} parameters, {precision}, on "
        f"{cluster.gpus} × {cluster.gpu.name}, nodes: {cluster.nodes}, network: {cluster.network_name}",
        *(f"measured: {note}" for note in cluster.calibration.notes),
        *([] if cluster.calibration.notes else ["speeds: those of published runs, nothing measured on these machines"]),
        layout_name(config, cluster.gpus),
        describe_layout(config),
    ]


def _memory(plan: Plan) -> list[str]:
    memory, limit = plan.memory, plan.cluster.gpu.memory_gib
    parts = {
        "weights": memory.weights,
        "gradients (float32)": memory.gradients,
        "optimizer shard (float32 weights, two moments)": memory.optimizer,
        f"activations (recompute: {plan.config.training.recompute_granularity or 'none'})": memory.activations,
        "logits and loss": memory.logits,
        f"reserve (assumed: {RESERVE_BYTES >> 30} GiB + {FRAGMENTATION:.0%})": memory.reserve,
    }
    stages = plan.config.parallel.pipeline_model_parallel_size
    lines = [f"memory of the fullest GPU, stage {plan.stage} of {stages}, GiB:"]
    lines += [f"  {name:50s}{size / GIB:8.1f}" for name, size in parts.items()]
    verdict = "fits" if memory.total <= limit * GIB else "DOES NOT FIT"
    return [*lines, f"  {'total':50s}{memory.total / GIB:8.1f} of {limit:.1f}: {verdict}"]


def _host(plan: Plan) -> list[str]:
    keep, checkpoint = plan.config.checkpoint.keep, plan.checkpoint
    size = checkpoint.size_bytes / GIB
    lines = [
        f"host memory of a save: {plan.host_bytes_per_node / GIB:.0f} GiB per node",
        f"disk: {size:.0f} GiB per checkpoint, {(keep + 1) * size:.0f} GiB while keep = {keep} and one more is written",
        f"a save: training stands still for {checkpoint.stall_s:.1f} s, on disk after {checkpoint.write_s:.0f} s at "
        f"{plan.cluster.storage_gb_per_s:g} GB/s (assumed: --storage-gb-per-s)",
    ]
    if checkpoint.interval_s is not None:
        lines[-1] += f"; every {checkpoint.interval_s / 60:.0f} minutes, {checkpoint.share_of_time:.2%} of the time"
        if checkpoint.write_s > checkpoint.interval_s:
            lines.append("  SLOWER THAN THE INTERVAL: saves will wait for each other; raise checkpoint.save_interval")
    return lines


def _time(plan: Plan) -> list[str]:
    flops = flops_per_token(plan.architecture, plan.data.seq_length)
    documents = plan.data.document_tokens
    rows = f"documents of {documents:,.0f} tokens on average" if documents else "whole rows, which take longest"
    lines = [
        f"time: {plan.step_time_s:.3g} s per step of {plan.tokens_per_step:,} tokens, {plan.tokens_per_s_per_gpu:,.0f} "
        f"tokens/s/GPU, MFU {plan.mfu:.1%}",
        f"  ({flops / 1e9:.1f} GFLOP a token: 6·N + 12·layers·hidden·seq, over the dense bf16 peak; attention timed over {rows})",
    ]
    for name, seconds in plan.step.parts().items():
        lines.append(f"  {_PARTS[name]:50s}{1e3 * seconds:10.1f} ms {seconds / plan.step_time_s:7.1%}")
    return lines


def _cost(plan: Plan) -> list[str]:
    if plan.run is None:
        return ["steps: unknown before the blend is built; give --rows N for the whole run"]
    run = plan.run
    lines = [
        f"run: {plan.steps:,} steps, {(plan.steps or 0) * plan.tokens_per_step:,} tokens with padding: {run.days:.2f} days, "
        f"{run.gpu_hours:,.0f} GPU-hours",
        f"  energy: about {run.energy_kwh:,.0f} kWh (assumed: {POWER_SHARE:.0%} of {plan.cluster.gpu.power_w:.0f} W and "
        f"{HOST_W_PER_GPU:.0f} W of the host a GPU, times {POWER_USAGE_EFFECTIVENESS} for the building)",
    ]
    if run.usd is not None:
        lines.append(f"  money: {run.usd:,.0f} USD at {plan.cluster.usd_per_gpu_hour:g} per GPU-hour")
    return lines


def format_layouts(layouts: Layouts, limit: int = 20) -> str:
    """The fitting ones in the order of predicted time, and the others by reason."""
    total = len(layouts.fitting) + len(layouts.refused)
    lines = [f"LAYOUTS, planned: {len(layouts.fitting)} of {total} fit; quickest first"]
    lines.append(f"  {'tokens/s/GPU':>12} {'MFU':>6} {'step s':>8} {'GiB':>6}  layout")
    for plan in layouts.fitting[:limit]:
        lines.append(
            f"  {plan.tokens_per_s_per_gpu:12,.0f} {plan.mfu:6.1%} {plan.step_time_s:8.3g} {plan.memory.total / GIB:6.1f}  "
            f"{layout_name(plan.config, plan.cluster.gpus)}"
        )
    if len(layouts.fitting) > limit:
        lines.append(f"  … {len(layouts.fitting) - limit} slower ones (--json FILE has all)")
    lines.append("refused:")
    for reason, names in _by_reason(layouts).items():
        lines.append(f"  {len(names)} × {reason}: {'; '.join(names[:2])}{' …' if len(names) > 2 else ''}")
    return "\n".join(lines)


def _by_reason(layouts: Layouts) -> dict[str, list[str]]:
    """Names of refused layouts; those that need too much memory are one reason."""
    found: dict[str, list[str]] = {}
    for refused in layouts.refused:
        needs_memory = refused.reason.startswith("needs ")
        reason = "too little GPU memory" if needs_memory else refused.reason
        shown = f"{refused.name} ({refused.reason})" if needs_memory else refused.name
        found.setdefault(reason, []).append(shown)
    return found


def plan_record(plan: Plan, layouts: Layouts) -> dict[str, Any]:
    """The plan as one JSON object."""
    run = plan.run
    return {
        "planned": True,
        "calibrated": list(plan.cluster.calibration.notes),
        "step_time_s": plan.step_time_s,
        "step_parts_s": plan.step.parts(),
        "tokens_per_s_per_gpu": plan.tokens_per_s_per_gpu,
        "mfu": plan.mfu,
        "memory_gib": plan.memory.total / GIB,
        "memory_parts_gib": {name: size / GIB for name, size in vars(plan.memory).items()},
        "gpu_memory_gib": plan.cluster.gpu.memory_gib,
        "refusal": plan.refusal,
        "host_memory_per_node_gib": plan.host_bytes_per_node / GIB,
        "checkpoint": {**vars(plan.checkpoint), "share_of_time": plan.checkpoint.share_of_time},
        "steps": plan.steps,
        "days": None if run is None else run.days,
        "gpu_hours": None if run is None else run.gpu_hours,
        "energy_kwh": None if run is None else run.energy_kwh,
        "usd": None if run is None else run.usd,
        "layouts": [layout_record(other) for other in layouts.fitting],
        "refused": [vars(refused) for refused in layouts.refused],
    }
