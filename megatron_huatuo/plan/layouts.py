"""Every layout of a run on given GPUs: which fit, in the order of their predicted time, and why the others do not.

Invariant: what is varied is how the run is split and what it computes again (tensor, pipeline and virtual pipeline
parallelism, micro-batch, recomputation); what decides the loss curve stays.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.plan.plan import GIB, Cluster, Plan, PlannedData, plan_run
from megatron_huatuo.train.train_config import TrainConfig, TrainingConfig

# granularity and modules: nothing, the attention kernel, that and the gated unit, whole layers
_RECOMPUTATION: list[tuple[str | None, list[str]]] = [
    (None, TrainingConfig().recompute_modules),
    ("selective", ["core_attn"]),
    ("selective", ["core_attn", "mlp"]),
    ("full", TrainingConfig().recompute_modules),
]
_DECISIVE = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_size", "recompute_granularity")


@dataclass(frozen=True)
class RefusedLayout:
    """A layout that cannot run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Layouts:
    """fitting: the quickest first, then the least divided."""

    fitting: list[Plan]
    refused: list[RefusedLayout]


def rank_layouts(config: TrainConfig, cluster: Cluster, data: PlannedData) -> Layouts:
    """Plan every layout of `config` on all the GPUs of a cluster."""
    fitting: list[Plan] = []
    refused: list[RefusedLayout] = []
    for candidate in _candidates(config, cluster):
        name = layout_name(candidate, cluster.gpus)
        try:
            plan = plan_run(candidate, cluster, data)
        except ConfigError as error:
            refused.append(RefusedLayout(name, str(error)))
            continue
        if plan.refusal is None:
            fitting.append(plan)
        else:
            refused.append(RefusedLayout(name, plan.refusal))
    fitting.sort(
        key=lambda plan: (round(plan.step_time_s, 6), plan.config.parallel.model_parallel_size, plan.memory.total)
    )
    return Layouts(fitting, refused)


def _candidates(config: TrainConfig, cluster: Cluster) -> Iterator[TrainConfig]:
    """Tensor parallelism inside a node; pipelines whose stages are equal; micro-batches that divide the batch."""
    layers = config.model.architecture().num_layers
    inside = min(cluster.gpus, cluster.gpus_per_node)
    for tensor_parallel in (size for size in (1, 2, 4, 8, 16) if size <= inside):
        for stages in range(1, min(layers, cluster.gpus // tensor_parallel) + 1):
            if layers % stages or cluster.gpus % (tensor_parallel * stages):
                continue
            rows = config.training.global_batch_size * tensor_parallel * stages / cluster.gpus
            micro_batches = [size for size in (1, 2, 4, 8, 16) if rows % size == 0] or [1]
            chunks = [
                None,
                *(size for size in range(2, layers // stages + 1) if stages > 1 and layers % (stages * size) == 0),
            ]
            for chunk, micro_batch, again in itertools.product(chunks, micro_batches, _RECOMPUTATION):
                yield _with_layout(config, tensor_parallel, stages, chunk, micro_batch, *again)


def _with_layout(
    config: TrainConfig,
    tensor_parallel: int,
    stages: int,
    chunks: int | None,
    micro_batch: int,
    granularity: str | None,
    modules: list[str],
) -> TrainConfig:
    parallel = dataclasses.replace(
        config.parallel,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=chunks,
        sequence_parallel=None,
        tp_comm_overlap=config.parallel.tp_comm_overlap and tensor_parallel > 1,
    )
    training = dataclasses.replace(
        config.training,
        recompute_granularity=granularity,
        recompute_modules=modules,
        recompute_num_layers=1,
        micro_batch_size=micro_batch,
    )
    return dataclasses.replace(config, parallel=parallel, training=training)


def layout_name(config: TrainConfig, gpus: int) -> str:
    """A layout for people: TP 4, PP 2 × 3, DP 8, micro-batch 1, recompute core_attn."""
    parallel, training = config.parallel, config.training
    chunks = parallel.virtual_pipeline_model_parallel_size
    again = training.recompute_granularity or "none"
    if again == "selective":
        again = "+".join(training.recompute_modules)
    stages = f"{parallel.pipeline_model_parallel_size}{f' × {chunks}' if chunks else ''}"
    data_parallel = gpus // parallel.model_parallel_size
    return (
        f"TP {parallel.tensor_model_parallel_size}, PP {stages}, DP {data_parallel}, "
        f"micro-batch {training.micro_batch_size}, recompute {again}"
    )


def describe_layout(config: TrainConfig, instead_of: TrainConfig | None = None) -> str:
    """The settings that decide memory, as flags of tools/train.py; with `instead_of` also all others of the sections
    parallel and training that differ, so that the flags turn that configuration into this one."""
    flags = []
    for section in ("parallel", "training"):
        before = to_plain(getattr(instead_of or config, section))
        for key, value in to_plain(getattr(config, section)).items():
            if key in _DECISIVE or value != before[key]:
                spelt = value if isinstance(value, str) else json.dumps(value)
                flags.append(f"--{section}.{key} {shlex.quote(spelt)}")
    return " ".join(flags)


def layout_record(plan: Plan) -> dict[str, Any]:
    """One layout as JSON values."""
    parallel, training = plan.config.parallel, plan.config.training
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "data_parallel_size": parallel.data_parallel_size(plan.cluster.gpus),
        "micro_batch_size": training.micro_batch_size,
        "recompute_granularity": training.recompute_granularity,
        "recompute_modules": list(training.recompute_modules) if training.recompute_granularity == "selective" else [],
        "step_time_s": plan.step_time_s,
        "tokens_per_s_per_gpu": plan.tokens_per_s_per_gpu,
        "mfu": plan.mfu,
        "memory_gib": plan.memory.total / GIB,
        "flags": describe_layout(plan.config),
    }


def check_plan(plan: Plan, limit: int = 3) -> None:
    """Raises: ConfigError when the plan does not fit, naming up to `limit` layouts that do, the quickest first."""
    if plan.refusal is None:
        return
    others = rank_layouts(plan.config, plan.cluster, plan.data).fitting[:limit]
    if not others:
        raise ConfigError(
            f"run does not fit: {plan.refusal}. No layout of {plan.cluster.gpus} such GPUs holds it: use more, or larger ones."
        )
    fixes = "\n".join(
        f"  {describe_layout(other.config, plan.config)}  ({other.memory.total / GIB:.1f} GiB, "
        f"{other.tokens_per_s_per_gpu:,.0f} tokens/s/GPU)"
        for other in others
    )
    raise ConfigError(f"run does not fit: {plan.refusal}. These fit, as planned:\n{fixes}")
