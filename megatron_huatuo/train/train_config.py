"""Settings of a training run: one dataclass a section. What may stand in them, `rules.py` says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_huatuo.blend.learning_rate import ScheduleConfig
from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.parallel.parallel_config import ParallelConfig
from megatron_huatuo.storage.manifest import fingerprint


@dataclass
class ModelConfig:
    """Which backbone, and where its first weights come from."""

    preset: str | None = None
    """Name of a known architecture (toy, baichuan2-7b, …); or give `hf`."""
    hf: str | None = None
    """Hugging Face directory whose config.json gives the architecture."""
    ignore_config_keys: list[str] = field(default_factory=list)
    """Keys of the config.json in `hf` that are known to have no effect on the model's function."""
    init_from: str | None = None
    """Hugging Face directory or checkpoint with the first weights; null: random ones from training.seed."""

    attention: str = "auto"
    """Attention of packed rows: transformer_engine, flash_attn, torch, or auto for the first of these that can."""

    def architecture(self) -> Architecture:
        """The architecture of `preset` or `hf`. Raises ConfigError unless exactly one is given."""
        if (self.preset is None) == (self.hf is None):
            raise ConfigError("wrong model section: need exactly one of model.preset and model.hf.")
        return (
            get_preset(self.preset)
            if self.preset is not None
            else load_architecture(self.hf or "", self.ignore_config_keys)
        )


@dataclass
class ValidationSource:
    """A held-out index."""

    name: str
    """Name in the log."""
    path_prefix: str
    """Index prefix P of P.bin, P.idx, P.json."""
    general: bool = False
    """General text: its loss is compared with that of the weights which the run began with, and an export refuses a rise."""
    max_increase: float = 0.01
    """With general: largest relative rise of the loss that an export accepts."""


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
    """Check the sha256 of the blend's and the indexes' files at start (about 1 GB/s per rank), not their sizes alone."""


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
class TrainingConfig:
    """Batches, length and precision."""

    micro_batch_size: int = 1
    """Rows of one forward pass of one rank."""
    global_batch_size: int = 128
    """Rows per step, over all ranks."""
    train_iters: int | None = None
    """Last step; null: one pass over the blend."""
    precision: str = "bf16"
    """bf16 (fp32 master weights and gradients) or fp32."""
    fp8: str | None = None
    """Matrix products of the layers in fp8, by Transformer Engine: null, hybrid (gradients in e5m2) or e4m3."""
    fp8_recipe: str = "tensorwise"
    """With fp8: what shares one scale: tensorwise, blockwise (blocks of 128) or mxfp8 (of 32, Blackwell)."""
    seed: int = 1234
    """Seed of random first weights."""
    recompute_granularity: str | None = None
    """Activation recomputation: null, selective or full."""
    recompute_modules: list[str] = field(default_factory=lambda: ["core_attn"])
    """With selective: the parts of a layer that are computed again, core_attn and mlp."""
    recompute_num_layers: int = 1
    """With full: layers a recomputed block."""
    on_nonfinite: str = "stop"
    """What a NaN or infinite loss or gradient does: stop the run, or skip the step."""

    @property
    def number_formats(self) -> str:
        """`precision`, and fp8 where it is on: what the loss curve depends on."""
        return self.precision if self.fp8 is None else f"{self.precision} with fp8 {self.fp8}, {self.fp8_recipe}"


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which stay."""

    save_interval: int | None = 500
    """Steps between saves; null: only at the end."""
    save_at_end: bool = True
    """Save when the run ends, by its last step or a stop request. false is for measurements: what was trained is lost."""
    keep: int = 2
    """Newest checkpoints that stay."""
    keep_every: int | None = None
    """Checkpoints of iterations that this divides stay too."""
    asynchronous: bool | None = None
    """Write in the background, except the last one; null: on GPUs."""
    save_timeout_minutes: float = 30.0
    """A background save that takes longer is given up; the run goes on."""
    allow_changed: list[str] = field(default_factory=list)
    """Fingerprints that may differ on resume: blend, tokenizer, config."""
    export_hf: str | None = None
    """Hugging Face directory that the finished run is exported to; null: none."""


@dataclass
class ExamInTraining:
    """Exam questions whose likeliest option the training ranks name themselves, without an export."""

    questions: list[str] = field(default_factory=list)
    """Question files as `tools/evaluate.py exam` takes them; none: no exam."""
    interval: int | None = None
    """Steps between exams; null: only at the end. An exam of t tokens, options times question, costs about 1.15 times
    as much as training on t / 3 tokens: for at most 2 % of the time set it to 20 × t / (global_batch_size × seq_length) or more."""
    limit: int | None = 200
    """Ask at most so many questions, drawn as `--limit` draws them; null: all."""


@dataclass
class LoggingConfig:
    """What is written while training."""

    log_interval: int = 1
    """Steps between lines of log.jsonl."""
    validation_interval: int | None = None
    """Steps between validations; null: only at the end."""
    exam: ExamInTraining = field(default_factory=ExamInTraining)
    """A small exam by log-likelihood."""
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
    """Directory of the run; a run that lies there is resumed."""
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
            "architecture": architecture.without_defaults(),
            "optimizer": to_plain(self.optimizer),
            "schedule": to_plain(self.schedule),
            "global_batch_size": self.training.global_batch_size,
            "precision": self.training.number_formats,
            "isolate_documents": self.data.isolate_documents,
        }
