"""A plan as text for a person."""

from __future__ import annotations

from megatron_huatuo.models.core.flops import count_parameters, flops_per_token
from megatron_huatuo.plan.memory import FRAGMENTATION, RESERVE_BYTES
from megatron_huatuo.plan.plan import GIB, Plan, describe_layout


def format_plan(plan: Plan) -> str:
    """All figures of a plan, headed by what they are."""
    return "\n".join([*_header(plan), "", *_memory(plan), "", *_host(plan), "", *_time(plan)])


def _header(plan: Plan) -> list[str]:
    config, cluster = plan.config, plan.cluster
    nodes = -(-cluster.gpus // cluster.gpus_per_node)
    parallel = config.parallel
    return [
        "PLANNED, not measured.",
        f"{config.model.preset or config.model.hf}: {count_parameters(plan.architecture):,} parameters, "
        f"{config.training.precision}, on {cluster.gpus} × {cluster.gpu.name}, nodes: {nodes}",
        f"TP {parallel.tensor_model_parallel_size} × PP {parallel.pipeline_model_parallel_size} × "
        f"DP {parallel.data_parallel_size(cluster.gpus)}: {describe_layout(config)}",
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
    keep = plan.config.checkpoint.keep
    return [
        f"host memory of a portable save or load: {plan.host_bytes_per_node / GIB:.0f} GiB a node (12 bytes a parameter of "
        "each rank; the save after the last step is portable)",
        f"disk: {plan.checkpoint_bytes / GIB:.0f} GiB a checkpoint, {(keep + 1) * plan.checkpoint_bytes / GIB:.0f} GiB "
        f"while keep = {keep} and one more is written",
    ]


def _time(plan: Plan) -> list[str]:
    flops = flops_per_token(plan.architecture, plan.seq_length)
    lines = [
        f"time: {flops / 1e9:.1f} GFLOP a token (6·N + 12·layers·hidden·seq, causal masking not subtracted) at an MFU of "
        f"{plan.mfu:.1%} (assumed {plan.cluster.mfu:.0%} before recomputation and pipeline bubbles)",
        f"  {plan.step_time_s:.1f} s a step of {plan.tokens_per_step:,} tokens, {plan.tokens_per_s_per_gpu:,.0f} tokens/s/GPU",
    ]
    if plan.steps is None:
        return [*lines, "  steps: unknown before the blend is built; give --rows N for the whole run"]
    days = plan.steps * plan.step_time_s / 86400
    return [
        *lines,
        f"  {plan.steps:,} steps, {plan.steps * plan.tokens_per_step:,} tokens with padding: {days:.2f} days",
    ]
