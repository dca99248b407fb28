"""Plans against real ranks, against figures worked out by hand, and against what must be refused."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.config import argument_parser, dump_yaml
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.flops import count_parameters, flops_per_token
from megatron_huatuo.models.registry import presets
from megatron_huatuo.plan.gpus import GPUS, get_gpu
from megatron_huatuo.plan.memory import layer_activations, layers_in_flight, rank_memory, rank_parameters
from megatron_huatuo.plan.plan import Cluster, alternatives, check_plan, plan_run
from megatron_huatuo.plan.plan_text import format_plan
from megatron_huatuo.train.config import TrainConfig
from tests.distributed.runner import run_ranks

ROOT = Path(__file__).parents[3]
GIB = 2**30
SMALL = Architecture(
    family="llama",
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=16,
    vocab_size=128,
    norm_epsilon=1e-6,
    rope_theta=1e4,
    max_position_embeddings=256,
)
WITH_BIAS = dataclasses.replace(SMALL, family="qwen2", qkv_bias=True, tied_embeddings=True)


def make_config(preset: str = "baichuan2-7b", **settings: Any) -> TrainConfig:
    """A configuration with some settings of parallel and training changed."""
    config = TrainConfig()
    config.model.preset = preset
    for key, value in settings.items():
        section = config.parallel if hasattr(config.parallel, key) else config.training
        assert hasattr(section, key)
        setattr(section, key, value)
    return config


def plan_7b(gpu: str = "a100-80gb", gpus: int = 8, rows: int | None = None, **settings: Any) -> Any:
    return plan_run(make_config(**settings), Cluster(get_gpu(gpu), gpus), seq_length=4096, rows=rows)


def _count_on_rank(tensor_parallel: int, stages: int) -> list[int]:
    from megatron.core import parallel_state
    from megatron.core import tensor_parallel as mcore_tensor_parallel

    from megatron_huatuo.models.core.build import build_model
    from megatron_huatuo.parallel.host import enable_host

    enable_host()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_parallel, pipeline_model_parallel_size=stages
    )
    mcore_tensor_parallel.model_parallel_cuda_manual_seed(1)
    counts = []
    for architecture in (SMALL, WITH_BIAS):
        model = build_model(
            architecture,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            tensor_model_parallel_size=tensor_parallel,
            pipeline_model_parallel_size=stages,
        )
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    return counts


@pytest.mark.parametrize(("tensor_parallel", "stages"), [(2, 1), (1, 2)])
def test_parameters_are_those_of_real_ranks(tensor_parallel: int, stages: int) -> None:
    counted = run_ranks(2, _count_on_rank, tensor_parallel, stages)
    for rank, counts in enumerate(counted):
        stage = rank if stages == 2 else 0
        planned = [rank_parameters(it, tensor_parallel, stages, stage) for it in (SMALL, WITH_BIAS)]
        assert planned == counts


@pytest.mark.parametrize("name", sorted(presets()))
def test_parameters_of_one_rank_are_all_parameters(name: str) -> None:
    assert rank_parameters(presets()[name], 1, 1, 0) == count_parameters(presets()[name])


def _allocated_on_rank(precision: str) -> dict[str, float]:
    """Bytes that the engine really allocates on one of two data-parallel ranks."""
    import torch

    from megatron_huatuo.parallel.host import enable_device
    from megatron_huatuo.parallel.process_groups import initialize_process_groups
    from megatron_huatuo.train.setup import build_training

    device = enable_device("cpu")
    config = make_config("toy", precision=precision)
    initialize_process_groups(config.parallel, device, 2.0)
    training = build_training(config, config.model.architecture(), device, 10)
    buffers = [buffer for chunk in training.wrapped for buffer in chunk.buffers]
    groups = [group for part in training.optimizer.chained_optimizers for group in part.optimizer.param_groups]
    shard = sum(parameter.numel() for group in groups for parameter in group["params"])
    weights = {parameter.untyped_storage().data_ptr(): parameter for parameter in training.chunks[0].parameters()}
    return {
        "weights": sum(parameter.untyped_storage().nbytes() for parameter in weights.values()),
        "gradients": sum(buffer.grad_data.numel() * buffer.grad_data.element_size() for buffer in buffers),
        "optimizer": shard * torch.float32.itemsize * (3 if precision == "bf16" else 2),
    }


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_weights_gradients_and_optimizer_are_what_the_engine_allocates(precision: str) -> None:
    """Within 2 %: buffers are padded to equal shards."""
    config = make_config("toy", precision=precision)
    planned = rank_memory(config, config.model.architecture(), world_size=2, seq_length=256, stage=0)
    for allocated in run_ranks(2, _allocated_on_rank, precision):
        for part, size in allocated.items():
            assert size == pytest.approx(getattr(planned, part), rel=0.02), part


def _saved_for_backward(recompute: str | None) -> float:
    """Bytes a token that autograd keeps for one more layer, bf16, on the CPU."""
    import torch
    from megatron.core import parallel_state, tensor_parallel

    from megatron_huatuo.models.core.build import build_model
    from megatron_huatuo.parallel.host import enable_host

    enable_host()
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1)
    settings: dict[str, Any] = {}
    if recompute == "full":
        settings = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    tokens = torch.arange(SMALL.max_position_embeddings)[None] % SMALL.vocab_size
    totals = []
    for layers in (1, 2):
        model = build_model(dataclasses.replace(SMALL, num_layers=layers), precision="bf16", **settings)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Any, own: set[int] = own, kept: dict[int, Any] = kept) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(tokens, tokens, None, labels=tokens)
        totals.append(sum(storage.nbytes() for storage in kept.values()))
    return (totals[1] - totals[0]) / tokens.numel()


def _saved_by_recompute() -> dict[str, float]:
    return {"none": _saved_for_backward(None), "full": _saved_for_backward("full")}


def test_activations_are_what_autograd_keeps() -> None:
    """The CPU's own gated unit keeps 2 · ffn more, its rotation 4 · head_dim; the kernel's own copies of the attention,
    which a GPU makes, are counted and not kept here. So the plan lies above, by less than half."""
    saved = run_ranks(1, _saved_by_recompute)[0]
    of_the_cpu = 2 * SMALL.ffn_hidden_size + 4 * SMALL.head_dim
    planned = layer_activations(SMALL, width=2)
    assert saved["none"] - of_the_cpu <= planned.outside + planned.inside < 1.5 * (saved["none"] - of_the_cpu)
    assert layer_activations(SMALL, width=2, recompute="full").outside == saved["full"]


def test_activations_of_a_7b_layer_by_hand() -> None:
    """h = q = kv = 4096, f = 11008: norms 8h, q k v and their rotation 6h + 4h, context 4h, softmax 4 · 32, unit 6f."""
    activations = layer_activations(presets()["baichuan2-7b"], width=2)
    assert activations.outside == 8 * 4096
    assert activations.inside == 14 * 4096 + 128 + 6 * 11008


def test_13b_without_rotation_keeps_no_rotated_copies() -> None:
    with_alibi = layer_activations(presets()["baichuan2-13b"], width=2)
    assert with_alibi.inside == 10 * 5120 + 4 * 40 + 6 * 13696


def test_sequence_parallelism_divides_the_norms_too() -> None:
    config, architecture = make_config(tensor_model_parallel_size=4), presets()["baichuan2-7b"]
    kept = layer_activations(architecture, width=2)
    assert kept.on_rank(config.parallel) == (kept.outside + kept.inside) / 4
    config.parallel.sequence_parallel = False
    assert kept.on_rank(config.parallel) == kept.outside + kept.inside / 4


@pytest.mark.parametrize(
    ("stages", "chunks", "stage", "num_microbatches", "expected"),
    [
        (1, None, 0, 8, 60),  # one micro-batch of all layers
        (4, None, 0, 8, 60),  # 4 micro-batches of 15 layers
        (4, None, 3, 8, 15),
        (4, None, 0, 2, 30),  # no more micro-batches than there are
        (2, 3, 0, 16, 10 * 7),  # (2 - 1) · 2 + 2 · 2 + 1 = 7 chunks of 10 layers
        (2, 3, 1, 16, 10 * 5),
    ],
)
def test_layers_in_flight(stages: int, chunks: int | None, stage: int, num_microbatches: int, expected: float) -> None:
    config = make_config("yi-34b", pipeline_model_parallel_size=stages, virtual_pipeline_model_parallel_size=chunks)
    assert layers_in_flight(config, 60, stage, num_microbatches) == expected


def test_7b_memory_by_hand() -> None:
    memory = plan_7b().memory
    parameters = 7_505_973_248
    assert memory.weights == 2 * parameters and memory.gradients == 4 * parameters
    assert memory.optimizer == 12 * parameters / 8


def test_portable_save_of_7b_at_dp8_takes_720_gb_of_host_memory() -> None:
    assert plan_7b().host_bytes_per_node == pytest.approx(720e9, rel=0.01)
    assert plan_7b(tensor_model_parallel_size=2).host_bytes_per_node == pytest.approx(360e9, rel=0.01)


def test_recomputation_lowers_memory_and_speed() -> None:
    plans = [plan_7b(recompute_granularity=granularity) for granularity in (None, "selective", "full")]
    activations = [plan.memory.activations for plan in plans]
    assert activations == sorted(activations, reverse=True) and len(set(activations)) == 3
    assert plans[0].mfu == 0.45 and plans[2].mfu == pytest.approx(0.45 * 3 / 4)
    assert plans[2].mfu < plans[1].mfu < plans[0].mfu


def test_recomputed_mlp_drops_the_gated_unit_and_repeats_its_products() -> None:
    """6 · 11008 bytes a token and layer go; 3 products of 4096 × 11008 are done once more forward, of 3 in all."""
    chosen = {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    plain, again = plan_7b(), plan_7b(**chosen)
    assert plain.memory.activations - again.memory.activations == 4096 * 32 * 6 * 11008
    gated_unit = 6 * 32 * 3 * 4096 * 11008 / flops_per_token(presets()["baichuan2-7b"], 4096)
    assert again.mfu == pytest.approx(0.45 / (1 + gated_unit / 3))


def test_time_by_hand() -> None:
    """1,000 steps of 128 × 4,096 tokens at 45 % of 8 × 312 TFLOP/s."""
    plan = plan_7b(rows=128_000)
    flops = flops_per_token(presets()["baichuan2-7b"], 4096)
    assert plan.steps == 1000
    assert plan.step_time_s == pytest.approx(128 * 4096 * flops / (8 * 312e12 * 0.45))
    assert plan.tokens_per_s_per_gpu == pytest.approx(312e12 * 0.45 / flops)
    assert f"{1000 * plan.step_time_s / 86400:.2f} days" in format_plan(plan)


def test_bubbles_by_hand() -> None:
    """34B on 64 GPUs: 16 micro-batches, 2 stages; 3 chunks cut the bubbles to a third."""
    settings = {"preset": "yi-34b", "tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 2}
    assert plan_7b(gpus=64, **settings).mfu == pytest.approx(0.45 / (1 + 1 / 16))
    interleaved = plan_7b(gpus=64, virtual_pipeline_model_parallel_size=3, **settings)
    assert interleaved.mfu == pytest.approx(0.45 / (1 + 1 / 48))


def test_what_does_not_fit_is_refused_with_layouts_that_fit() -> None:
    plan = plan_7b()
    assert not plan.fits
    with pytest.raises(ConfigError, match=r"needs \d+\.\d GiB on a GPU of stage 0, a100-80gb has 79\.1") as refused:
        check_plan(plan)
    assert "--parallel.tensor_model_parallel_size 2" in str(refused.value)
    found = alternatives(plan)
    assert found and all(other.fits for other in found)
    assert found[0].step_time_s == min(other.step_time_s for other in found)


@pytest.mark.parametrize(
    ("gpus", "settings"),
    [
        (8, {"micro_batch_size": 4, "recompute_granularity": "full", "recompute_num_layers": 32}),
        (8, {"micro_batch_size": 8, "recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]}),
        (8, {"tensor_model_parallel_size": 2, "sequence_parallel": True, "micro_batch_size": 16}),
        (8, {"tensor_model_parallel_size": 2, "sequence_parallel": False, "micro_batch_size": 16}),
        (16, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "micro_batch_size": 8}),
        (8, {"tensor_model_parallel_size": 4, "tp_comm_overlap": True, "micro_batch_size": 32}),
    ],
    ids=str,
)
def test_the_flags_of_a_proposal_give_the_run_that_was_planned(
    gpus: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_7b(gpus=gpus, rows=128_000, **settings)
    with pytest.raises(ConfigError, match="These fit") as refused:
        check_plan(plan)
    proposals = [line.rpartition("  (")[0].strip() for line in str(refused.value).splitlines()[1:]]
    config_file = tmp_path / "train.yaml"
    config_file.write_text(dump_yaml(plan.config))
    parser = argument_parser("", config_file=True)
    parser.add_class_arguments(TrainConfig)
    for flags, other in zip(proposals, alternatives(plan), strict=True):
        options = parser.instantiate(parser.parse_args(["--config", str(config_file), *shlex.split(flags)]))
        config = TrainConfig(**{field.name: options[field.name] for field in dataclasses.fields(TrainConfig)})
        assert plan_run(config, plan.cluster, seq_length=4096, rows=128_000) == other


def test_what_fits_nowhere_is_said() -> None:
    with pytest.raises(ConfigError, match="No layout of 1 such GPUs holds it: use more, or larger ones"):
        check_plan(plan_7b(gpus=1))


def test_host_memory_is_checked_when_it_is_known() -> None:
    config = make_config(tensor_model_parallel_size=2)
    cluster = Cluster(get_gpu("a100-80gb"), 8, host_memory_gib=256)
    with pytest.raises(ConfigError, match=r"portable saves do not fit: need 336 GiB of host memory a node, got 256"):
        check_plan(plan_run(config, cluster, seq_length=4096, rows=None))


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"gpus": 0}, "wrong --gpus: got 0, need 1 or more"),
        ({"gpus_per_node": 0}, "wrong --gpus-per-node: got 0, need 1 or more"),
        ({"mfu": 1.5}, "wrong --mfu: got 1.5, need a share above 0 and up to 1"),
    ],
)
def test_nonsense_about_the_cluster_is_refused(cluster: dict[str, Any], message: str) -> None:
    settings = {"gpu": get_gpu("h100"), "gpus": 8, **cluster}
    with pytest.raises(ConfigError, match=message):
        plan_run(make_config(), Cluster(**settings), seq_length=4096, rows=None)


def test_run_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="wrong --rows: got 0, need 1 or more"):
        plan_7b(rows=0)


def test_unknown_gpu_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown GPU: got 'a100', need one of .*a100-80gb"):
        get_gpu("a100")


def test_every_gpu_has_the_peak_of_its_data_sheet() -> None:
    rates = {gpu.name: gpu.peak_flops_per_s for gpu in GPUS.values()}
    assert rates["a100-80gb"] == 312e12 and rates["h100"] == rates["h200"] == 989e12
    assert all(0 < gpu.memory_gib < 200 for gpu in GPUS.values())


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", str(ROOT / "tools" / "plan_run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_tool_prints_a_plan_without_loading_torch() -> None:
    config = str(ROOT / "examples" / "huatuo2_7b" / "train.yaml")
    done = run_tool("--config", config, "--gpu", "a100-80gb", "--gpus", "8", "--rows", "1280000")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("PLANNED, not measured.") and "10,000 steps" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() in ("torch", "megatron.core")]


def test_tool_refuses_with_exit_code_one_after_showing_why() -> None:
    done = run_tool("--model.preset", "yi-34b", "--gpu", "a100-40gb", "--gpus", "8")
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout and "error: run does not fit" in done.stderr


def test_rows_come_from_the_blend(sample_blend: Path) -> None:
    from megatron_huatuo.plan.plan import rows_of_blend

    rows, seq_length = rows_of_blend(str(sample_blend)) or (0, 0)
    assert rows > 10 and seq_length == 256
    assert rows_of_blend("no/such/blend") is None
