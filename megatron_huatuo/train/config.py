"""Settings of a training run: one dataclass a section, and the rules that span sections.

Invariant: what `validate` lets through can start; it costs no process group and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from megatron_huatuo.config import to_plain
from megatron_huatuo.dataset.sampler import BatchLayout
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.hf.config import load_architecture
from megatron_huatuo.model.architecture import Architecture, get_preset
from megatron_huatuo.model.parallel import ParallelConfig
from megatron_huatuo.storage.manifest import fingerprint


@dataclass
class ModelConfig:
    """Which backbone, and where its first weights come from."""

    preset: str | None = None
    """Name of a known architecture (toy, baichuan2-7b, …); or give `hf`."""
    hf: str | None = None
    """Hugging Face directory whose config.json gives the architecture."""
    init_from: str | None = None
    """Hugging Face directory or checkpoint with the first weights; null: random ones from training.seed."""

    def architecture(self) -> Architecture:
        """The architecture of `preset` or `hf`. Raises ConfigError unless exactly one is given."""
        if (self.preset is None) == (self.hf is None):
            raise ConfigError("wrong model section: need exactly one of model.preset and model.hf.")
        return get_preset(self.preset) if self.preset is not None else load_architecture(self.hf or "")


@dataclass
class ValidationSource:
    """A held-out index."""

    name: str
    """Name in the log."""
    path_prefix: str
    """Index prefix P of P.bin, P.idx, P.json."""


@dataclass
class DataConfig:
    """What is trained on."""

    blend: str = ""
    """Blend directory."""
    validation: list[ValidationSource] = field(default_factory=list)
    """Held-out indexes whose loss is logged every logging.validation_interval steps."""
    isolate_documents: bool = True
    """Documents of a row do not see each other; false gives the reference's rows, where they do."""
    verify_hashes: bool = True
    """Check the sha256 of the blend's and the indexes' files at start (about 1 GB/s a rank), not their sizes alone."""


@dataclass
class OptimizerSettings:
    """AdamW; norms and biases are not decayed."""

    lr: float = 1e-4
    """Highest learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass
class ScheduleConfig:
    """Learning rate by step: linear warm-up, then cosine."""

    warmup_fraction: float = 0.01
    """Share of decay_iters that the warm-up takes."""
    decay_iters: int | None = None
    """Steps until the lowest rate; null: one pass over the blend, whatever train_iters."""
    min_lr: float = 0.0
    """Rate at the end."""


@dataclass
class TrainingConfig:
    """Batches, length and precision."""

    micro_batch_size: int = 1
    """Rows of one forward pass of one rank."""
    global_batch_size: int = 128
    """Rows a step, over all ranks."""
    train_iters: int | None = None
    """Last step; null: one pass over the blend."""
    precision: str = "bf16"
    """bf16 (fp32 master weights and gradients) or fp32."""
    seed: int = 1234
    """Seed of random first weights."""
    recompute_granularity: str | None = None
    """Activation recomputation: null, selective or full."""
    recompute_num_layers: int = 1
    """With full: layers a recomputed block."""
    on_nonfinite: str = "stop"
    """What a NaN or infinite loss or gradient does: stop the run, or skip the step."""


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which stay."""

    save_interval: int | None = 500
    """Steps between saves; null: only at the end."""
    keep: int = 2
    """Newest checkpoints that stay."""
    keep_every: int | None = None
    """Checkpoints of iterations that this divides stay too."""
    asynchronous: bool | None = None
    """Write in the background, except the last one; null: on GPUs."""
    save_timeout_minutes: float = 30.0
    """A background save that takes longer is given up; the run goes on."""
    portable: bool | None = None
    """Save the optimizer so that any layout can resume; null: when its state is below 4 GiB, and always at the end."""
    allow_changed: list[str] = field(default_factory=list)
    """Fingerprints that may differ on resume: blend, tokenizer, config."""


@dataclass
class LoggingConfig:
    """What is written while training."""

    log_interval: int = 1
    """Steps between lines of log.jsonl."""
    validation_interval: int | None = None
    """Steps between validations; null: only at the end."""
    tensorboard: bool = True
    """Write tensorboard/ into the run directory."""
    wandb_project: str | None = None
    """Weights & Biases project; needs the wandb package."""
    profile_steps: list[int] = field(default_factory=list)
    """[first, last] steps for torch's profiler; traces go to profile/ in the run directory."""


@dataclass
class RuntimeConfig:
    """The machine."""

    device: str = "auto"
    """auto, cpu or cuda."""
    deterministic: bool = False
    """Refuse nondeterministic CUDA kernels (slower; the CPU is deterministic anyway)."""
    distributed_timeout_minutes: float = 10.0
    """After this long a collective that waits for a lost rank fails."""


@dataclass
class TrainConfig:
    """Everything of one run."""

    run_dir: str = "runs/train"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def fingerprint(self, architecture: Architecture) -> str:
        """sha256 of `decisive`."""
        return fingerprint(self.decisive(architecture))

    def decisive(self, architecture: Architecture) -> dict[str, Any]:
        """What decides the loss curve besides the data: architecture, optimizer, schedule, global batch size.

        Layout, micro-batch size, intervals and train_iters may change on resume.
        """
        return {
            "architecture": architecture.to_dict(),
            "optimizer": to_plain(self.optimizer),
            "schedule": to_plain(self.schedule),
            "global_batch_size": self.training.global_batch_size,
            "precision": self.training.precision,
            "isolate_documents": self.data.isolate_documents,
        }


def _choose(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"wrong {name}: got {value!r}, need one of {', '.join(map(str, allowed))}.")


def _at_least(name: str, value: float | None, minimum: float) -> None:
    if value is not None and not (math.isfinite(value) and value >= minimum):
        raise ConfigError(f"wrong {name}: got {value}, need {minimum} or more.")


def _check_profile_steps(steps: list[int]) -> None:
    if len(steps) not in (0, 2):
        raise ConfigError(f"wrong logging.profile_steps: got {steps}, need [first, last].")
    if steps and not 1 <= steps[0] <= steps[1]:
        raise ConfigError(f"wrong logging.profile_steps: got {steps}, need 1 <= first <= last.")


def validate(config: TrainConfig, *, seq_length: int, num_rows: int, world_size: int) -> int:
    """Check all sections together and return the number of steps.

    Raises: ConfigError naming the key and the values that would work.
    """
    training, schedule, checkpoint = config.training, config.schedule, config.checkpoint
    _choose("training.precision", training.precision, ("bf16", "fp32"))
    _choose("training.recompute_granularity", training.recompute_granularity, (None, "selective", "full"))
    _choose("training.on_nonfinite", training.on_nonfinite, ("stop", "skip"))
    _choose("runtime.device", config.runtime.device, ("auto", "cpu", "cuda"))
    for name in checkpoint.allow_changed:
        _choose("checkpoint.allow_changed", name, ("blend", "tokenizer", "config"))
    _at_least("training.recompute_num_layers", training.recompute_num_layers, 1)
    _at_least("checkpoint.save_interval", checkpoint.save_interval, 1)
    _at_least("checkpoint.save_timeout_minutes", checkpoint.save_timeout_minutes, 0.01)
    _at_least("checkpoint.keep", checkpoint.keep, 1)
    _at_least("checkpoint.keep_every", checkpoint.keep_every, 1)
    _at_least("logging.log_interval", config.logging.log_interval, 1)
    _at_least("logging.validation_interval", config.logging.validation_interval, 1)
    _at_least("optimizer.lr", config.optimizer.lr, 0)
    _at_least("optimizer.clip_grad", config.optimizer.clip_grad, 0)
    _at_least("schedule.min_lr", schedule.min_lr, 0)
    _at_least("schedule.decay_iters", schedule.decay_iters, 1)
    _at_least("runtime.distributed_timeout_minutes", config.runtime.distributed_timeout_minutes, 0.05)
    if not 0 <= schedule.warmup_fraction < 1:
        raise ConfigError(
            f"wrong schedule.warmup_fraction: got {schedule.warmup_fraction}, need 0 or more and below 1."
        )
    if schedule.min_lr > config.optimizer.lr:
        raise ConfigError(
            f"wrong schedule.min_lr: got {schedule.min_lr}, need at most optimizer.lr = {config.optimizer.lr}."
        )
    _check_profile_steps(config.logging.profile_steps)
    data_parallel_size = config.parallel.data_parallel_size(world_size)
    layout = BatchLayout(training.global_batch_size, training.micro_batch_size, 0, data_parallel_size)
    architecture = config.model.architecture()
    config.parallel.validate(
        num_layers=architecture.num_layers,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        ffn_hidden_size=architecture.ffn_hidden_size,
        vocab_size=architecture.vocab_size,
        seq_length=seq_length,
        num_microbatches=layout.num_microbatches,
    )
    if training.recompute_granularity == "full":
        chunks = config.parallel.pipeline_model_parallel_size * (
            config.parallel.virtual_pipeline_model_parallel_size or 1
        )
        if training.recompute_num_layers > architecture.num_layers // chunks:
            raise ConfigError(
                f"wrong training.recompute_num_layers: got {training.recompute_num_layers}, need at most "
                f"{architecture.num_layers // chunks}, the layers of a model chunk."
            )
    return _train_iters(training, num_rows)


def one_pass(global_batch_size: int, num_rows: int) -> int:
    """Steps of one pass over the blend; the last one is filled with empty rows."""
    return -(-num_rows // global_batch_size)


def _train_iters(training: TrainingConfig, num_rows: int) -> int:
    longest = one_pass(training.global_batch_size, num_rows)
    if training.train_iters is None:
        return longest
    if not 1 <= training.train_iters <= longest:
        raise ConfigError(
            f"wrong training.train_iters: got {training.train_iters}, need 1 to {longest}: one pass over {num_rows} rows. "
            "More passes are epochs of the sources: set them in the blend."
        )
    return training.train_iters
