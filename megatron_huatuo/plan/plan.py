"""What a run will need, before it starts: memory by part, host memory, disk, steps and time.

Invariant: every figure is planned, none is measured, and says so. A configuration that does not fit is refused with
settings that do. Needs no GPU and does not load torch.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.flops import count_parameters, flops_per_token
from megatron_huatuo.plan.gpus import Gpu
from megatron_huatuo.plan.memory import RankMemory, rank_memory, rank_parameters
from megatron_huatuo.storage.manifest import read_manifest
from megatron_huatuo.train.config import TrainConfig
from megatron_huatuo.train.rules import validate

GIB = 2**30
_UNKNOWN_ROWS = 1 << 40


@dataclass(frozen=True)
class Cluster:
    """What the plan is for, and what it assumes."""

    gpu: Gpu
    gpus: int
    gpus_per_node: int = 8
    mfu: float = 0.45
    """Assumed model FLOPs of a step without recomputation and pipeline bubbles, as a share of the peak."""
    host_memory_gib: float | None = None
    """Memory of one node's host; None leaves it unchecked."""


@dataclass(frozen=True)
class Plan:
    """Planned figures of one run. rows, steps, tokens and time_s are None while the number of rows is unknown."""

    config: TrainConfig
    architecture: Architecture
    cluster: Cluster
    seq_length: int
    rows: int | None
    steps: int | None
    stage: int
    """Pipeline stage of the fullest rank."""
    memory: RankMemory
    host_bytes_per_node: float
    checkpoint_bytes: float
    mfu: float
    """The assumed one after recomputation and bubbles."""
    step_time_s: float

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.config.training.global_batch_size * self.seq_length

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Planned throughput."""
        return self.tokens_per_step / self.step_time_s / self.cluster.gpus

    @property
    def fits(self) -> bool:
        """Whether GPU memory, and host memory where it is known, suffice."""
        host = self.cluster.host_memory_gib
        return self.memory.total <= self.cluster.gpu.memory_gib * GIB and (
            host is None or self.host_bytes_per_node <= host * GIB
        )


def rows_of_blend(directory: str) -> tuple[int, int] | None:
    """(rows, seq_length) of a blend directory; None where it does not exist yet."""
    if not directory or not Path(directory).exists():
        return None
    manifest = read_manifest(directory, "blend")
    return manifest["rows"], manifest["seq_length"]


def plan_run(config: TrainConfig, cluster: Cluster, *, seq_length: int, rows: int | None) -> Plan:
    """Plan a run; a plan that does not fit is returned too (`check_plan` refuses it).

    Raises: ConfigError for settings that could not start on these GPUs.
    """
    _check_cluster(cluster)
    if rows is not None and rows < 1:
        raise ConfigError(f"wrong --rows: got {rows}, need 1 or more.")
    steps = validate(config, seq_length=seq_length, num_rows=rows or _UNKNOWN_ROWS, world_size=cluster.gpus)
    architecture = config.model.architecture()
    parallel = config.parallel
    stages, tensor_parallel = parallel.pipeline_model_parallel_size, parallel.tensor_model_parallel_size
    memories = [
        rank_memory(
            config,
            architecture,
            world_size=cluster.gpus,
            seq_length=seq_length,
            stage=stage,
        )
        for stage in range(stages)
    ]
    fullest = max(range(stages), key=lambda stage: memories[stage].total)
    largest = max(rank_parameters(architecture, tensor_parallel, stages, stage) for stage in range(stages))
    mfu = _planned_mfu(config, architecture, cluster, seq_length)
    tokens = config.training.global_batch_size * seq_length
    flops_per_s = cluster.gpus * cluster.gpu.peak_flops_per_s * mfu
    weight_bytes = 2 if config.training.precision == "bf16" else 0  # in float32 the optimizer's copy is the weight
    known = rows is not None or config.training.train_iters is not None
    return Plan(
        config=config,
        architecture=architecture,
        cluster=cluster,
        seq_length=seq_length,
        rows=rows,
        steps=steps if known else None,
        stage=fullest,
        memory=memories[fullest],
        host_bytes_per_node=12.0 * largest * min(cluster.gpus, cluster.gpus_per_node),
        checkpoint_bytes=(12.0 + weight_bytes) * count_parameters(architecture),
        mfu=mfu,
        step_time_s=tokens * flops_per_token(architecture, seq_length) / flops_per_s,
    )


def _check_cluster(cluster: Cluster) -> None:
    for name in ("gpus", "gpus_per_node"):
        if getattr(cluster, name) < 1:
            raise ConfigError(f"wrong --{name.replace('_', '-')}: got {getattr(cluster, name)}, need 1 or more.")
    if not 0 < cluster.mfu <= 1:
        raise ConfigError(f"wrong --mfu: got {cluster.mfu}, need a share above 0 and up to 1.")


def _planned_mfu(config: TrainConfig, architecture: Architecture, cluster: Cluster, seq_length: int) -> float:
    """Assumed MFU × what recomputation leaves × what pipeline bubbles leave.

    Full recomputation repeats the forward pass, a third of the work again. Selective repeats the chosen modules, a third
    of their share. Bubbles: (stages - 1) / (chunks · micro-batches) of a step (Narayanan et al. 2021, section 2.2).
    """
    parallel, training = config.parallel, config.training
    attention = 12.0 * architecture.num_layers * architecture.num_attention_heads * architecture.head_dim * seq_length
    gated_unit = 18.0 * architecture.num_layers * architecture.hidden_size * architecture.ffn_hidden_size
    chosen = sum({"core_attn": attention, "mlp": gated_unit}[module] for module in training.recompute_modules)
    share = chosen / flops_per_token(architecture, seq_length)
    repeated = {None: 0.0, "selective": share / 3, "full": 1 / 3}[training.recompute_granularity]
    data_parallel = parallel.data_parallel_size(cluster.gpus)
    num_microbatches = training.global_batch_size // (training.micro_batch_size * data_parallel)
    chunks = parallel.virtual_pipeline_model_parallel_size or 1
    bubbles = (parallel.pipeline_model_parallel_size - 1) / (chunks * num_microbatches)
    return cluster.mfu / (1 + repeated) / (1 + bubbles)


def alternatives(plan: Plan, limit: int = 3) -> list[Plan]:
    """Plans of the same run with other layouts that fit, the quickest first, then the least divided."""
    found = []
    for config in _other_layouts(plan):
        try:
            other = plan_run(config, plan.cluster, seq_length=plan.seq_length, rows=plan.rows)
        except ConfigError:
            continue
        if other.fits:
            found.append(other)
    return sorted(found, key=lambda other: (other.step_time_s, other.config.parallel.model_parallel_size))[:limit]


def _other_layouts(plan: Plan) -> Iterator[TrainConfig]:
    """Tensor parallelism inside a node, any pipeline, any recomputation, one row a micro-batch."""
    most = min(plan.cluster.gpus, plan.cluster.gpus_per_node)
    for tensor_parallel in (size for size in (1, 2, 4, 8, 16) if size <= most):
        for stages in range(1, plan.cluster.gpus // tensor_parallel + 1):
            if plan.architecture.num_layers % stages or plan.cluster.gpus % (tensor_parallel * stages):
                continue
            for recompute in (None, "selective", "full"):
                parallel = dataclasses.replace(
                    plan.config.parallel,
                    tensor_model_parallel_size=tensor_parallel,
                    pipeline_model_parallel_size=stages,
                    virtual_pipeline_model_parallel_size=None,
                    sequence_parallel=None,
                    tp_comm_overlap=plan.config.parallel.tp_comm_overlap and tensor_parallel > 1,
                )
                training = dataclasses.replace(
                    plan.config.training,
                    recompute_granularity=recompute,
                    recompute_modules=["core_attn"],
                    recompute_num_layers=1,
                    micro_batch_size=1,
                )
                yield dataclasses.replace(plan.config, parallel=parallel, training=training)


_DECISIVE = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_size", "recompute_granularity")


def describe_layout(config: TrainConfig, instead_of: TrainConfig | None = None) -> str:
    """The settings that decide memory, as flags of tools/train.py; with `instead_of` also all others of the sections
    parallel and training that differ, so that the flags turn that configuration into this one."""
    flags = []
    for section in ("parallel", "training"):
        before = to_plain(getattr(instead_of or config, section))
        for key, value in to_plain(getattr(config, section)).items():
            if key in _DECISIVE or value != before[key]:
                flags.append(f"--{section}.{key} {shlex.quote(json.dumps(value))}")
    return " ".join(flags)


def check_plan(plan: Plan) -> None:
    """Raises: ConfigError when the plan does not fit, naming up to three layouts that do."""
    if plan.fits:
        return
    limit, need = plan.cluster.gpu.memory_gib, plan.memory.total / GIB
    if need > limit:
        problem = f"run does not fit: needs {need:.1f} GiB on a GPU of stage {plan.stage}, {plan.cluster.gpu.name} has {limit:.1f}."
    else:
        problem = (
            f"portable saves do not fit: need {plan.host_bytes_per_node / GIB:.0f} GiB of host memory a node, got "
            f"{plan.cluster.host_memory_gib:.0f} (--host-memory-gib)."
        )
    others = alternatives(plan)
    if others:
        fixes = "\n".join(
            f"  {describe_layout(other.config, plan.config)}  ({other.memory.total / GIB:.1f} GiB)" for other in others
        )
        raise ConfigError(f"{problem} These fit, as planned:\n{fixes}")
    raise ConfigError(f"{problem} No layout of {plan.cluster.gpus} such GPUs holds it: use more, or larger ones.")
