"""What may stand in the settings of a run, section by section and across them.

Invariant: what `validate` lets through can start on a machine that has what it asks for; it costs no process group and no
model. Each refusal names the key, the value and what would work.
"""

from __future__ import annotations

from megatron_huatuo.config import above_zero, at_least, one_of
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.attention_backend import BACKENDS
from megatron_huatuo.train.observers.forgetting import check_general_sources
from megatron_huatuo.train.train_config import TrainConfig, TrainingConfig

# Sizes of a matrix product in fp8 are multiples of this: 16 by the hardware, or the block that shares a scale. `delayed`
# is not among them: its history of maxima is in no checkpoint, so a resumed run would differ from an undisturbed one.
FP8_RECIPES = {"tensorwise": 16, "blockwise": 128, "mxfp8": 32}


def validate(config: TrainConfig, *, seq_length: int, num_rows: int, world_size: int) -> int:
    """Check all sections together and return the number of steps.

    Raises: ConfigError naming the key and the values that would work.
    """
    _check_choices(config)
    _check_ranges(config)
    training = config.training
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
    _check_recomputation(config, architecture)
    _check_fp8(config, architecture, seq_length)
    _check_overlap(config)
    check_general_sources(config)
    train_iters = _train_iters(training, num_rows)
    steps = config.logging.profile_steps
    if steps and steps[1] > train_iters:
        raise ConfigError(
            f"wrong logging.profile_steps: got {steps}, need at most {train_iters}, the last step of the run."
        )
    return train_iters


def _check_choices(config: TrainConfig) -> None:
    training = config.training
    one_of("model.attention", config.model.attention, BACKENDS)
    one_of("training.precision", training.precision, ("bf16", "fp32"))
    one_of("training.fp8", training.fp8, (None, "hybrid", "e4m3"))
    one_of("training.fp8_recipe", training.fp8_recipe, tuple(FP8_RECIPES))
    one_of("training.recompute_granularity", training.recompute_granularity, (None, "selective", "full"))
    one_of("training.on_nonfinite", training.on_nonfinite, ("stop", "skip"))
    one_of("runtime.device", config.runtime.device, ("auto", "cpu", "cuda"))
    for name in config.checkpoint.allow_changed:
        one_of("checkpoint.allow_changed", name, ("blend", "tokenizer", "config"))


def _check_ranges(config: TrainConfig) -> None:
    checkpoint, lr = config.checkpoint, config.optimizer.lr
    at_least("training.recompute_num_layers", config.training.recompute_num_layers, 1)
    at_least("checkpoint.save_interval", checkpoint.save_interval, 1)
    at_least("checkpoint.save_timeout_minutes", checkpoint.save_timeout_minutes, 0.01)
    at_least("checkpoint.keep", checkpoint.keep, 1)
    at_least("checkpoint.keep_every", checkpoint.keep_every, 1)
    at_least("logging.log_interval", config.logging.log_interval, 1)
    at_least("logging.validation_interval", config.logging.validation_interval, 1)
    at_least("logging.exam.interval", config.logging.exam.interval, 1)
    at_least("logging.exam.limit", config.logging.exam.limit, 1)
    if config.logging.exam.interval is not None and not config.logging.exam.questions:
        raise ConfigError("logging.exam.interval has no effect without logging.exam.questions. Name their files.")
    at_least("optimizer.lr", lr, 0)
    at_least("optimizer.clip_grad", config.optimizer.clip_grad, 0)
    at_least("optimizer.weight_decay", config.optimizer.weight_decay, 0)
    above_zero("optimizer.eps", config.optimizer.eps)
    _below_one("optimizer.beta1", config.optimizer.beta1)
    _below_one("optimizer.beta2", config.optimizer.beta2)
    at_least("runtime.distributed_timeout_minutes", config.runtime.distributed_timeout_minutes, 0.05)
    config.schedule.validate(lr)
    steps = config.logging.profile_steps
    if len(steps) not in (0, 2):
        raise ConfigError(f"wrong logging.profile_steps: got {steps}, need [first, last].")
    if steps and not 1 <= steps[0] <= steps[1]:
        raise ConfigError(f"wrong logging.profile_steps: got {steps}, need 1 <= first <= last.")


def _below_one(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"wrong {name}: got {value}, need 0 or more and below 1.")


def _check_recomputation(config: TrainConfig, architecture: Architecture) -> None:
    training = config.training
    modules, granularity = training.recompute_modules, training.recompute_granularity
    if "layernorm" in modules:
        raise ConfigError(
            "wrong training.recompute_modules: got 'layernorm', need core_attn or mlp. Transformer Engine has the norms inside "
            "its matrix products, where nothing is left to recompute; without it megatron-core 0.16 fails."
        )
    for module in modules:
        one_of("training.recompute_modules", module, ("core_attn", "mlp"))
    if granularity == "selective" and not modules:
        raise ConfigError("wrong training.recompute_modules: got none, need core_attn, mlp or both with selective.")
    if granularity != "selective" and modules != TrainingConfig().recompute_modules:
        raise ConfigError(
            f"wrong training.recompute_modules: got {modules} with recompute_granularity {granularity or 'null'}, which does "
            "not use it. Set training.recompute_granularity to selective, or leave it out."
        )
    if granularity != "full" and training.recompute_num_layers != TrainingConfig().recompute_num_layers:
        raise ConfigError(
            f"wrong training.recompute_num_layers: got {training.recompute_num_layers} with recompute_granularity "
            f"{granularity or 'null'}, which does not use it. Set training.recompute_granularity to full, or leave it out."
        )
    if granularity == "full":
        parallel = config.parallel
        chunks = parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
        if training.recompute_num_layers > architecture.num_layers // chunks:
            raise ConfigError(
                f"wrong training.recompute_num_layers: got {training.recompute_num_layers}, need at most "
                f"{architecture.num_layers // chunks}, the layers of a model chunk."
            )


def _check_fp8(config: TrainConfig, architecture: Architecture, seq_length: int) -> None:
    """The sizes that one rank multiplies; head and embedding stay in bf16, so the vocabulary does not count."""
    training, parallel = config.training, config.parallel
    if training.fp8 is None:
        if training.fp8_recipe != TrainingConfig().fp8_recipe:
            raise ConfigError(
                f"wrong training.fp8_recipe: got {training.fp8_recipe} without training.fp8, which uses it. Set fp8 to hybrid "
                "or e4m3, or leave the recipe out."
            )
        return
    if training.precision != "bf16":
        raise ConfigError(
            f"wrong training.fp8: got {training.fp8!r} with training.precision {training.precision}, need bf16. Set it, or "
            "leave fp8 out."
        )
    tp, head_dim = parallel.tensor_model_parallel_size, architecture.head_dim
    queries = architecture.num_attention_heads * head_dim
    sizes = {
        "row length": seq_length // (tp if parallel.uses_sequence_parallel else 1),
        "hidden_size": architecture.hidden_size,
        "ffn_hidden_size": architecture.ffn_hidden_size // tp,
        "width of the queries": queries // tp,
        "width of queries, keys and values": (queries + 2 * architecture.num_query_groups * head_dim) // tp,
    }
    multiple = FP8_RECIPES[training.fp8_recipe]
    for name, size in sizes.items():
        if size % multiple:
            raise ConfigError(
                f"wrong training.fp8: got {training.fp8!r} with recipe {training.fp8_recipe}, but the {name} is {size} on a "
                f"rank, need a multiple of {multiple}. Change the layout, the recipe or seq_length, or leave fp8 out."
            )


def _check_overlap(config: TrainConfig) -> None:
    """What Transformer Engine's overlap buffers hold; sequence parallelism and the package are checked elsewhere."""
    training = config.training
    if not config.parallel.tp_comm_overlap:
        return
    if training.precision != "bf16":
        raise ConfigError(
            f"wrong parallel.tp_comm_overlap: got true with training.precision {training.precision}, need bf16. Set it, or "
            "switch the overlap off."
        )
    if training.fp8 is not None and training.fp8_recipe == "blockwise":
        raise ConfigError(
            "wrong parallel.tp_comm_overlap: got true with training.fp8_recipe blockwise, need tensorwise or mxfp8. Set it, "
            "or switch the overlap off."
        )


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
