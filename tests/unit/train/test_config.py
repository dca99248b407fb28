"""Settings that cannot work are refused with the key, the value and what would work, before anything starts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core.build_model import transformer_config
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.parallel.host import enable_host
from megatron_huatuo.train.rules import FP8_RECIPES, one_pass, validate
from megatron_huatuo.train.train_config import TrainConfig

# Keys that a sound toy run is changed in, and the message that follows.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"training.precision": "fp16"}, r"wrong training.precision: got 'fp16', need one of bf16, fp32"),
    ({"training.recompute_granularity": "half"}, r"wrong training.recompute_granularity: got 'half'"),
    (
        {"training.recompute_modules": ["moe"]},
        r"wrong training.recompute_modules: got 'moe', need one of core_attn, mlp",
    ),
    ({"training.recompute_modules": ["layernorm"]}, r"got 'layernorm', need core_attn or mlp. Transformer Engine has"),
    (
        {"training.recompute_modules": [], "training.recompute_granularity": "selective"},
        r"wrong training.recompute_modules: got none, need core_attn, mlp or both with selective",
    ),
    (
        {"training.recompute_modules": ["mlp"], "training.recompute_granularity": "full"},
        r"got \['mlp'\] with recompute_granularity full, which does not use it",
    ),
    ({"training.fp8": "e5m2"}, r"wrong training.fp8: got 'e5m2', need one of null, hybrid, e4m3"),
    (
        {"training.fp8_recipe": "delayed"},
        r"wrong training.fp8_recipe: got 'delayed', need one of tensorwise, blockwise",
    ),
    (
        {"training.fp8": "hybrid", "training.precision": "fp32"},
        r"wrong training.fp8: got 'hybrid' with training.precision fp32, need bf16",
    ),
    (
        {"training.fp8": "hybrid", "training.fp8_recipe": "blockwise"},
        r"recipe blockwise, but the hidden_size is 192 on a rank, need a multiple of 128",
    ),
    ({"training.recompute_num_layers": 0}, r"wrong training.recompute_num_layers: got 0, need 1 or more"),
    (
        {"training.recompute_num_layers": 2},
        r"got 2 with recompute_granularity null, which does not use it. Set training",
    ),
    (
        {"training.fp8_recipe": "blockwise"},
        r"wrong training.fp8_recipe: got blockwise without training.fp8, which uses it",
    ),
    ({"optimizer.beta1": -0.1}, r"wrong optimizer.beta1: got -0.1, need 0 or more and below 1"),
    ({"optimizer.beta2": 1.5}, r"wrong optimizer.beta2: got 1.5, need 0 or more and below 1"),
    ({"optimizer.eps": -1e-8}, r"wrong optimizer.eps: got -1e-08, need more than 0"),
    ({"optimizer.weight_decay": -0.1}, r"wrong optimizer.weight_decay: got -0.1, need 0 or more"),
    (
        {"logging.profile_steps": [20, 26]},
        r"wrong logging.profile_steps: got \[20, 26\], need at most 25, the last step",
    ),
    ({"training.on_nonfinite": "ignore"}, r"wrong training.on_nonfinite: got 'ignore', need one of stop, skip"),
    ({"training.train_iters": 0}, r"wrong training.train_iters: got 0, need 1 to 25"),
    ({"training.train_iters": 26}, r"got 26, need 1 to 25: one pass over 100 rows. More passes are epochs"),
    (
        {"training.global_batch_size": 6, "training.micro_batch_size": 4},
        r"wrong training.global_batch_size: got 6.*Use 16",
    ),
    ({"runtime.device": "tpu"}, r"wrong runtime.device: got 'tpu', need one of auto, cpu, cuda"),
    ({"runtime.distributed_timeout_minutes": 0.0}, r"wrong runtime.distributed_timeout_minutes: got 0.0, need 0.05"),
    ({"checkpoint.save_interval": 0}, r"wrong checkpoint.save_interval: got 0, need 1 or more"),
    ({"checkpoint.keep": 0}, r"wrong checkpoint.keep: got 0, need 1 or more"),
    ({"checkpoint.keep_every": 0}, r"wrong checkpoint.keep_every: got 0"),
    ({"checkpoint.allow_changed": ["weather"]}, r"wrong checkpoint.allow_changed: got 'weather', need one of blend"),
    ({"optimizer.lr": -1.0}, r"wrong optimizer.lr: got -1.0, need 0 or more"),
    ({"optimizer.lr": float("nan")}, r"wrong optimizer.lr: got nan"),
    ({"optimizer.clip_grad": -1.0}, r"wrong optimizer.clip_grad: got -1.0"),
    ({"schedule.min_lr": 0.5}, r"wrong schedule.min_lr: got 0.5, need at most optimizer.lr = 0.0001"),
    ({"schedule.warmup_fraction": 1.0}, r"wrong schedule.warmup_fraction: got 1.0, need 0 or more and below 1"),
    ({"schedule.decay_iters": 0}, r"wrong schedule.decay_iters: got 0"),
    ({"logging.log_interval": 0}, r"wrong logging.log_interval: got 0"),
    ({"logging.validation_interval": 0}, r"wrong logging.validation_interval: got 0"),
    ({"logging.profile_steps": [3]}, r"wrong logging.profile_steps: got \[3\], need \[first, last\]"),
    ({"logging.profile_steps": [0, 3]}, r"wrong logging.profile_steps: got \[0, 3\], need 1 <= first <= last"),
    ({"logging.profile_steps": [5, 3]}, r"wrong logging.profile_steps: got \[5, 3\], need 1 <= first <= last"),
    ({"model.preset": None}, r"need exactly one of model.preset and model.hf"),
    ({"model.hf": "somewhere"}, r"need exactly one of model.preset and model.hf"),
    ({"model.preset": "gpt-7"}, r"unknown preset: got 'gpt-7', need one of toy"),
    ({"parallel.tensor_model_parallel_size": 0}, r"wrong parallel.tensor_model_parallel_size: got 0, need 1 or more"),
    ({"parallel.tensor_model_parallel_size": 4}, r"got 4, but num_attention_heads is 6. Use one of \[1, 2\]"),
    ({"parallel.pipeline_model_parallel_size": 4}, r"got 4, but there are 2 layers. Use one of \[1, 2\]"),
    ({"parallel.pipeline_model_parallel_size": 3}, r"wrong number of ranks: got 4, need a multiple of .* = 3"),
    ({"model.attention": "xformers"}, r"wrong model.attention: got 'xformers', need one of auto, transformer_engine"),
    (
        {"parallel.sequence_parallel": True},
        r"wrong parallel.sequence_parallel: got true with tensor_model_parallel_size 1",
    ),
    ({"parallel.overlap_param_gather": True}, r"wrong parallel.overlap_param_gather: needs overlap_grad_reduce"),
    ({"parallel.tp_comm_overlap": True}, r"wrong parallel.tp_comm_overlap: needs sequence_parallel"),
    (
        {"parallel.tp_comm_overlap": True, "parallel.tensor_model_parallel_size": 2, "training.precision": "fp32"},
        r"wrong parallel.tp_comm_overlap: got true with training.precision fp32, need bf16",
    ),
    ({"parallel.virtual_pipeline_model_parallel_size": 2}, r"got 2 with 1 stages, need 2 or more of both"),
    (
        {"parallel.virtual_pipeline_model_parallel_size": 2, "parallel.pipeline_model_parallel_size": 2},
        r"got 2, but 2 layers over 2 stages do not divide. Use one of none: leave it out",
    ),
]


def sound() -> TrainConfig:
    config = TrainConfig()
    config.model.preset = "toy"
    config.training.global_batch_size = 4
    return config


def changed(changes: dict[str, Any]) -> TrainConfig:
    config = sound()
    for key, value in changes.items():
        section, name = key.split(".")
        assert hasattr(getattr(config, section), name), key
        setattr(getattr(config, section), name, copy.copy(value))
    return config


def check(config: TrainConfig) -> int:
    return validate(config, seq_length=256, num_rows=100, world_size=4)


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_setting_is_refused_with_its_key_and_what_works(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(changed(changes))


def test_interleaved_pipeline_needs_micro_batches_in_multiples_of_stages() -> None:
    config = changed({"parallel.pipeline_model_parallel_size": 2, "parallel.virtual_pipeline_model_parallel_size": 2})
    config.model.preset = "baichuan2-7b"
    config.training.global_batch_size = 6
    with pytest.raises(ConfigError, match="got 3 per step, need a multiple of 2 stages"):
        check(config)
    config.training.global_batch_size = 8
    assert check(config) == 13


def test_sequence_parallelism_needs_rows_that_divide() -> None:
    config = changed({"parallel.tensor_model_parallel_size": 2})
    with pytest.raises(ConfigError, match="got 2, but rows of 255 tokens do not divide"):
        validate(config, seq_length=255, num_rows=100, world_size=4)


def test_fp8_needs_sizes_that_divide_on_every_rank() -> None:
    """Rows of 4,096 over 2 ranks are 2,048; of 4,080, 2,040, which is no multiple of 16. Without fp8 it is allowed."""
    config = changed({"training.fp8": "hybrid", "parallel.tensor_model_parallel_size": 2})
    config.model.preset = "baichuan2-7b"
    assert validate(config, seq_length=4096, num_rows=100, world_size=4) == 25
    with pytest.raises(ConfigError, match=r"but the row length is 2040 on a rank, need a multiple of 16\. Change"):
        validate(config, seq_length=4080, num_rows=100, world_size=4)
    config.training.fp8 = None
    assert validate(config, seq_length=4080, num_rows=100, world_size=4) == 25


def test_overlap_has_no_buffers_for_blocks_of_fp8() -> None:
    config = changed({"training.fp8": "hybrid", "parallel.tensor_model_parallel_size": 2})
    config.model.preset, config.parallel.tp_comm_overlap = "baichuan2-7b", True
    assert validate(config, seq_length=4096, num_rows=100, world_size=4) == 25
    config.training.fp8_recipe = "blockwise"
    with pytest.raises(
        ConfigError, match=r"tp_comm_overlap: got true with training\.fp8_recipe blockwise, need tensorwise"
    ):
        validate(config, seq_length=4096, num_rows=100, world_size=4)


@pytest.mark.parametrize("recipe", FP8_RECIPES)
@pytest.mark.parametrize("modules", [["core_attn"], ["core_attn", "mlp"]], ids=str)
def test_megatron_core_takes_what_the_rules_let_through(recipe: str, modules: list[str]) -> None:
    enable_host()
    settings = {"recompute_granularity": "selective", "recompute_modules": list(modules)}
    taken = transformer_config(get_preset("toy"), precision="bf16", fp8="hybrid", fp8_recipe=recipe, **settings)
    assert (taken.fp8, taken.fp8_recipe, taken.fp8_param) == ("hybrid", recipe, False)
    assert taken.recompute_modules == modules


@pytest.mark.parametrize(("rows", "batch", "steps"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (2**31, 128, 2**24)])
def test_one_pass_fills_the_last_batch(rows: int, batch: int, steps: int) -> None:
    assert one_pass(batch, rows) == steps


def test_steps_follow_from_rows_unless_given() -> None:
    assert check(sound()) == 25
    assert check(changed({"training.train_iters": 7})) == 7


def test_the_fingerprint_knows_what_decides_the_curve() -> None:
    config, architecture = sound(), sound().model.architecture()
    same = {"training.micro_batch_size": 4, "training.train_iters": 3, "checkpoint.keep": 5, "logging.log_interval": 9}
    other = {
        "optimizer.lr": 1.0,
        "schedule.min_lr": 1e-6,
        "training.global_batch_size": 8,
        "training.precision": "fp32",
        "training.fp8": "hybrid",
    }
    fingerprint = config.fingerprint(architecture)
    for key, value in same.items():
        assert changed({key: value}).fingerprint(architecture) == fingerprint, key
    for key, value in other.items():
        assert changed({key: value}).fingerprint(architecture) != fingerprint, key
    assert len(fingerprint) == 64


def test_the_example_of_the_demo_is_sound() -> None:
    import yaml

    example = Path(__file__).parents[3] / "examples" / "toy_cpu" / "train.yaml"
    config = TrainConfig()
    for section, values in yaml.safe_load(example.read_text("utf-8")).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            assert hasattr(getattr(config, section), key), f"{section}.{key}"
            setattr(getattr(config, section), key, value)
    assert validate(config, seq_length=256, num_rows=1930, world_size=2) == 965
