"""Planned memory against real ranks and against figures worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron_huatuo.models.core.flops import count_parameters
from megatron_huatuo.models.families import presets
from megatron_huatuo.plan.memory import layer_activations, layers_in_flight, rank_memory, rank_parameters
from tests.distributed.runner import run_ranks
from tests.unit.convert import small_models
from tests.unit.plan.plans import make_config

SMALL = dataclasses.replace(
    small_models.SMALL["llama"], num_layers=4, hidden_size=64, ffn_hidden_size=96, num_attention_heads=4, vocab_size=128
)
WITH_BIAS = dataclasses.replace(SMALL, family="qwen2", qkv_bias=True, tied_embeddings=True)


def _count_on_rank(tensor_parallel: int, stages: int) -> list[int]:
    from megatron.core import parallel_state
    from megatron.core import tensor_parallel as mcore_tensor_parallel

    from megatron_huatuo.models.core.build_model import build_model
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


@pytest.mark.slow
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

    from megatron_huatuo.models.core.build_model import build_model
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
