"""What a run will need, before it starts: memory by part, host memory, disk, steps and time.

Invariant: every figure is planned, none is measured unless its calibration says so. A configuration that does not fit is
refused with settings that do (layouts.py finds them). Needs no GPU and does not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.flops import flops_per_token
from megatron_huatuo.plan.calibration import Calibration
from megatron_huatuo.plan.costs import CheckpointCost, RunCost, checkpoint_cost, run_cost
from megatron_huatuo.plan.gpus import Gpu
from megatron_huatuo.plan.links import Links, network_bytes_per_s
from megatron_huatuo.plan.memory import RankMemory, rank_memory
from megatron_huatuo.plan.step_time import StepTime, step_time
from megatron_huatuo.plan.workload import Workload
from megatron_huatuo.storage.manifest import read_manifest
from megatron_huatuo.train.rules import validate
from megatron_huatuo.train.train_config import TrainConfig

GIB = 2**30
_UNKNOWN_ROWS = 1 << 40


@dataclass(frozen=True)
class Cluster:
    """What the plan is for, and what it assumes."""

    gpu: Gpu
    gpus: int
    gpus_per_node: int = 8
    network: str | None = None
    """One of links.NETWORKS; None: that of NVIDIA's own nodes with this GPU."""
    network_gb_per_s: float | None = None
    """Of one GPU, one direction, in the place of `network`."""
    host_memory_gib: float | None = None
    """Memory of one node's host; None leaves it unchecked."""
    storage_gb_per_s: float = 10.0
    """Assumed: what the shared file system takes from all nodes together."""
    usd_per_gpu_hour: float | None = None
    calibration: Calibration = field(default_factory=Calibration)

    def __post_init__(self) -> None:
        for name in ("gpus", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ConfigError(f"wrong {_flag(name)}: got {getattr(self, name)}, need 1 or more.")
        for name in ("network_gb_per_s", "storage_gb_per_s", "usd_per_gpu_hour"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"wrong {_flag(name)}: got {value}, need a number above 0.")

    @property
    def nodes(self) -> int:
        """Machines of the run."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def network_name(self) -> str:
        """For people."""
        if self.network_gb_per_s is not None:
            return f"{self.network_gb_per_s:g} GB/s per GPU"
        name, rate = network_bytes_per_s(self.network, self.gpu)
        return f"{name} ({rate / 1e9:g} GB/s per GPU{'' if self.network else ', assumed'})"

    def links(self) -> Links:
        """Bandwidths as collectives reach them, measured ones where the calibration has them."""
        rate = self.network_gb_per_s
        network = network_bytes_per_s(self.network, self.gpu)[1] if rate is None else rate * 1e9
        return self.calibration.applied(Links.of(self.gpu, network, self.gpus_per_node, self.calibration.constants))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class PlannedData:
    """What is known of the data: rows None before a blend is there."""

    rows: int | None
    seq_length: int
    document_tokens: float | None = None
    """Mean length of a document; None plans whole rows, which take longest."""


@dataclass(frozen=True)
class Plan:
    """Planned figures of one run. steps and run are None while the number of rows is unknown."""

    config: TrainConfig
    architecture: Architecture
    cluster: Cluster
    data: PlannedData
    steps: int | None
    stage: int
    """Pipeline stage of the fullest rank."""
    memory: RankMemory
    host_bytes_per_node: float
    """What a save copies to the host memory of a node: the shares of its ranks."""
    step: StepTime
    checkpoint: CheckpointCost
    run: RunCost | None

    @property
    def step_time_s(self) -> float:
        """Predicted seconds of a step."""
        return self.step.total

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.config.training.global_batch_size * self.data.seq_length

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Predicted throughput."""
        return self.tokens_per_step / self.step_time_s / self.cluster.gpus

    @property
    def mfu(self) -> float:
        """Model FLOPs of that throughput (flops.py) over the dense bf16 peak, as log.jsonl counts it."""
        flops = flops_per_token(self.architecture, self.data.seq_length)
        return self.tokens_per_s_per_gpu * flops / self.cluster.gpu.peak_flops_per_s

    @property
    def refusal(self) -> str | None:
        """Why GPU memory, or host memory where it is known, does not suffice; None when it does."""
        limit, host = self.cluster.gpu.memory_gib, self.cluster.host_memory_gib
        if self.memory.total > limit * GIB:
            need = self.memory.total / GIB
            return f"needs {need:.1f} GiB on a GPU of stage {self.stage}, {self.cluster.gpu.name} has {limit:.1f}"
        if host is not None and self.host_bytes_per_node > host * GIB:
            need = self.host_bytes_per_node / GIB
            return f"saves need {need:.0f} GiB of host memory a node, got {host:.0f} (--host-memory-gib)"
        return None


def data_of_blend(directory: str) -> PlannedData | None:
    """Rows, row length and mean length of the documents of a blend; None where it does not exist yet."""
    if not directory or not Path(directory).exists():
        return None
    manifest = read_manifest(directory, "blend")
    documents = manifest["tokens"] / manifest["documents"]
    return PlannedData(manifest["rows"], manifest["seq_length"], documents)


def plan_run(config: TrainConfig, cluster: Cluster, data: PlannedData) -> Plan:
    """Plan a run; a plan that does not fit is returned too (`Plan.refusal`).

    Raises: ConfigError for settings that could not start on these GPUs.
    """
    rows = data.rows
    if rows is not None and rows < 1:
        raise ConfigError(f"wrong --rows: got {rows}, need 1 or more.")
    if data.document_tokens is not None and not data.document_tokens > 0:
        raise ConfigError(f"wrong --document-tokens: got {data.document_tokens}, need more than 0.")
    steps = validate(config, seq_length=data.seq_length, num_rows=rows or _UNKNOWN_ROWS, world_size=cluster.gpus)
    if config.training.fp8 and cluster.gpu.peak_fp8_flops_per_s is None:
        raise ConfigError(
            f"wrong training.fp8: got {config.training.fp8!r}, but {cluster.gpu.name} has no fp8. Leave it out."
        )
    architecture, stages = config.model.architecture(), config.parallel.pipeline_model_parallel_size
    memories = [
        rank_memory(config, architecture, world_size=cluster.gpus, seq_length=data.seq_length, stage=stage)
        for stage in range(stages)
    ]
    fullest = max(range(stages), key=lambda stage: memories[stage].total)
    work = Workload.of(
        config,
        architecture,
        world_size=cluster.gpus,
        seq_length=data.seq_length,
        document_tokens=data.document_tokens,
    )
    step = step_time(work, cluster.gpu, cluster.links(), cluster.calibration.constants)
    checkpoint = checkpoint_cost(
        config,
        architecture,
        gpus=cluster.gpus,
        step_time_s=step.total,
        storage_bytes_per_s=cluster.storage_gb_per_s * 1e9,
    )
    known = rows is not None or config.training.train_iters is not None
    run = run_cost(
        cluster.gpu,
        cluster.gpus,
        steps=steps,
        step_time_s=step.total,
        checkpoint=checkpoint,
        usd_per_gpu_hour=cluster.usd_per_gpu_hour,
    )
    return Plan(
        config=config,
        architecture=architecture,
        cluster=cluster,
        data=data,
        steps=steps if known else None,
        stage=fullest,
        memory=memories[fullest],
        host_bytes_per_node=checkpoint.size_bytes * min(cluster.gpus, cluster.gpus_per_node) / cluster.gpus,
        step=step,
        checkpoint=checkpoint,
        run=run if known else None,
    )
