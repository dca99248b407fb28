"""The time model: each part against figures worked out by hand, and the direction in which every setting moves it."""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.families import presets
from megatron_huatuo.plan import layer_time
from megatron_huatuo.plan.efficiency import RANGES, Constants
from megatron_huatuo.plan.gpus import GPUS, get_gpu
from megatron_huatuo.plan.layer_time import LayerModel
from megatron_huatuo.plan.links import NETWORKS, Links, network_bytes_per_s
from megatron_huatuo.plan.step_time import StepTime, step_time
from megatron_huatuo.plan.workload import Workload
from tests.unit.plan.plans import make_config, plan_7b

A100 = get_gpu("a100-80gb")
C = Constants()
LINKS = Links.of(A100, 25e9, 8, C)
WORK = Workload(
    architecture=presets()["llama-2-7b"],
    seq_length=4096,
    micro_batch_size=1,
    num_microbatches=16,
    data_parallel=8,
    attended_length=4096.0,
)


def step(**changes: Any) -> StepTime:
    """A step of Llama-2 7B on A100s with some of its workload changed."""
    return step_time(dataclasses.replace(WORK, **changes), A100, LINKS)


def layer(**changes: Any) -> Any:
    return LayerModel(dataclasses.replace(WORK, **changes), A100, LINKS, C).layer()


def test_a_matrix_product_is_its_arithmetic_and_its_traffic() -> None:
    """qkv 3h, projection h, gate and up 2f, down: 2·m·n·k FLOPs at 92 % of 312 TFLOP/s, 2 bytes a value at 85 % of 2,039 GB/s."""
    m, h, f = 4096, 4096, 11008
    shapes = [(m, 3 * h, h), (m, h, h), (m, 2 * f, h), (m, h, f)]
    by_hand = sum(
        2 * a * b * c / (312e12 * 0.92) + 2 * (a * c + c * b + a * b) / (2.039e12 * 0.85) for a, b, c in shapes
    )
    assert layer().forward.products == pytest.approx(by_hand)


def test_attention_counts_the_lower_triangle_and_more_than_twice_backward() -> None:
    """2·s·h·m FLOPs at 46 % of the peak, of which documents of 4,096 tokens get 4096 / 4596."""
    by_hand = 2 * 4096 * 4096 * 4096 / (312e12 * 0.46 * 4096 / 4596)
    assert layer().forward.attention == pytest.approx(by_hand)
    assert layer().backward.attention == pytest.approx(2.5 * by_hand)


def test_short_documents_need_less_attention_than_whole_rows() -> None:
    assert step(attended_length=256.0).attention < step().attention / 2
    assert step(attended_length=256.0).products == step().products


def test_a_sliding_window_leaves_a_band_of_the_triangle() -> None:
    """A band of 1,024 keys in documents of 4,096 tokens is 4096·1024 - 1024²/2 pairs: 896 a token, at the rate of documents of
    twice as many; Gemma 3's five local layers of six, and Mistral's all."""
    assert doctest.testmod(layer_time) == (0, 1)
    width = 4096

    def by_hand(keys: float) -> float:
        return 4 * 4096 * keys * width / (312e12 * 0.46 * 2 * keys / (2 * keys + 500))

    whole, local = by_hand(2048), by_hand(896)
    llama = WORK.architecture
    mistral = dataclasses.replace(llama, sliding_window=1024)
    gemma = dataclasses.replace(llama, sliding_window=1024, global_every=6, num_layers=36)
    assert layer().forward.attention == pytest.approx(whole)
    assert layer(architecture=mistral).forward.attention == pytest.approx(local)
    assert layer(architecture=gemma).forward.attention == pytest.approx((5 * local + whole) / 6)
    short = {"attended_length": 900.0}
    assert layer(architecture=mistral, **short).forward.attention == layer(**short).forward.attention
    wide = dataclasses.replace(llama, sliding_window=4096)
    assert layer(architecture=wide) == layer(), "a window that no document fills changes nothing"


def test_norms_behind_and_those_of_queries_and_keys_move_bytes_too() -> None:
    """Two more of 2 values forward and 3 backward of the hidden state; as many of each query and key."""
    h, kv, rate = 4096, 1024, 2.039e12 * 0.85
    plain = dataclasses.replace(WORK.architecture, num_query_groups=8)
    behind, heads = dataclasses.replace(plain, post_norms=True), dataclasses.replace(plain, qk_norm=True)
    for architecture, values in ((behind, 2 * h), (heads, h + kv)):
        more, less = layer(architecture=architecture), layer(architecture=plain)
        forward = more.forward.elementwise - less.forward.elementwise
        assert forward == pytest.approx(2 * 4096 * 2 * values / rate)
        assert more.backward.elementwise - less.backward.elementwise == pytest.approx(1.5 * forward)
        assert more.forward.products == less.forward.products
    shared = {"architecture": heads, "tensor_parallel": 4}
    less = layer(architecture=plain, tensor_parallel=4)
    assert layer(**shared).forward.elementwise - less.forward.elementwise == pytest.approx(
        2 * 4096 * 2 * (h + kv) / 4 / rate
    ), "heads are divided as matrices are"


def test_norms_rotation_and_gated_unit_move_their_bytes() -> None:
    """Forward 10 h + 2 (q + kv) + 3 f values, backward 12 h + 2 (q + kv) + 5 f, of 2 bytes."""
    h, f = 4096, 11008
    rate = 2.039e12 * 0.85
    assert layer().forward.elementwise == pytest.approx(2 * 4096 * (10 * h + 4 * h + 3 * f) / rate)
    assert layer().backward.elementwise == pytest.approx(2 * 4096 * (12 * h + 4 * h + 5 * f) / rate)
    assert layer(fused=False).forward.elementwise == pytest.approx(4 * layer().forward.elementwise)


def test_tensor_parallel_messages_by_hand() -> None:
    """Of 2 · 4096 · 4096 bytes half goes over NVLink at 80 % of 300 GB/s: four forward; backward two, and four beside
    products that lose 59 % of it."""
    one = 20e-6 + 2 * 4096 * 4096 / 2 / 240e9
    assert layer(tensor_parallel=2).forward.tensor_parallel == pytest.approx(4 * one)
    assert layer(tensor_parallel=2).backward.tensor_parallel == pytest.approx((2 + 4 * 0.59) * one)
    assert layer(tensor_parallel=2, tp_comm_overlap=True).forward.tensor_parallel == pytest.approx(4 * 0.59 * one)
    assert layer(tensor_parallel=2, sequence_parallel=False).backward.tensor_parallel == pytest.approx(4 * 0.59 * one)
    assert layer().forward.tensor_parallel == 0.0


def test_full_recomputation_repeats_the_forward_pass() -> None:
    again, plain = step(recomputed=("layer",)), step()
    assert again.recomputation == pytest.approx(16 * 32 * layer().forward.total)
    assert again.products == plain.products
    assert step(recomputed=("layer",), recomputed_layers=0.5).recomputation == pytest.approx(again.recomputation / 2)


def test_selective_recomputation_repeats_what_it_names() -> None:
    attention, both, all_of_it = (
        step(recomputed=names) for names in (("core_attn",), ("core_attn", "mlp"), ("layer",))
    )
    assert attention.recomputation == pytest.approx(16 * 32 * layer().forward.attention)
    assert attention.recomputation < both.recomputation < all_of_it.recomputation


def test_bubbles_are_the_other_stages_once_and_chunks_divide_them() -> None:
    """4 stages of 8 layers; the slowest, with the output layer, runs all micro-batches."""
    one = layer()
    stage = 8 * (one.forward.total + one.backward_total)
    swift = Links(8, 1e15, 1e15)
    plain = step_time(dataclasses.replace(WORK, pipeline_parallel=4), A100, swift).pipeline
    interleaved = step_time(dataclasses.replace(WORK, pipeline_parallel=4, chunks=4), A100, swift).pipeline
    assert plain == pytest.approx(3 * stage, rel=0.01)
    assert interleaved == pytest.approx(3 * stage / 4, rel=0.02)


def test_more_micro_batches_make_bubbles_a_smaller_share() -> None:
    shares = [step(pipeline_parallel=4, num_microbatches=count) for count in (4, 16, 64)]
    assert [each.pipeline / each.total for each in shares] == sorted(
        (e.pipeline / e.total for e in shares), reverse=True
    )


def test_overlap_hides_gradients_and_weights_behind_the_passes() -> None:
    """Alone: 4 bytes a gradient and 2 a weight, 7/8 of them over NVLink at 240 GB/s. Beside: 59 % of that."""
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 32000 * 4096
    alone = step(overlap_grad_reduce=False, overlap_param_gather=False).data_parallel
    assert alone == pytest.approx(6 * weights * 7 / 8 / 240e9 + 2 * 20e-6)
    assert step().data_parallel == pytest.approx(0.59 * alone)


def test_what_is_too_long_to_hide_is_waited_for() -> None:
    slow = Links(8, 240e9, 1e9)
    work = dataclasses.replace(WORK, data_parallel=64)
    hidden, alone = (
        step_time(dataclasses.replace(work, overlap_grad_reduce=on, overlap_param_gather=on), A100, slow).data_parallel
        for on in (True, False)
    )
    assert hidden > 0.9 * alone - 2 and hidden > 0.59 * alone


def test_a_group_has_as_many_adapters_as_members_in_a_node() -> None:
    links = Links(8, 240e9, 20e9)
    assert links.group_bytes_per_s(8, 1) == 240e9  # inside the node
    assert links.group_bytes_per_s(64, 1) == 160e9  # 8 adapters
    assert links.group_bytes_per_s(16, 4) == 40e9  # 2 members a node
    assert links.group_bytes_per_s(16, 8) == 20e9  # one a node
    assert links.gather_s(1e9, 1, 1) == 0.0


def test_fp8_products_are_quicker_and_the_output_layer_stays_in_bf16() -> None:
    h100, links = get_gpu("h100"), Links.of(get_gpu("h100"), 50e9, 8, C)
    models = [LayerModel(dataclasses.replace(WORK, precision=name), h100, links, C) for name in ("bf16", "fp8")]
    bf16, fp8 = (model.layer().forward.products for model in models)
    assert 1.6 < bf16 / fp8 < 2.1
    assert models[0].head() == models[1].head()
    assert models[1].layer().forward.elementwise > models[0].layer().forward.elementwise  # casts


def test_fp8_is_refused_on_a_gpu_without_it() -> None:
    with pytest.raises(
        ConfigError, match=r"wrong training\.fp8: got 'hybrid', but a100-80gb has no fp8\. Leave it out"
    ):
        plan_7b(fp8="hybrid")


def test_small_layers_wait_for_their_launches() -> None:
    toy = dataclasses.replace(WORK, architecture=presets()["toy"], seq_length=256, attended_length=256.0)
    assert step_time(toy, A100, LINKS).host > step_time(toy, A100, LINKS).products
    assert layer().forward.host == 0.0


def test_weights_spread_over_all_ranks_cost_gathers_for_each_micro_batch() -> None:
    small, large = (step(sharded_over=8, micro_batch_size=size, num_microbatches=16 // size) for size in (1, 4))
    assert small.data_parallel > 2 * large.data_parallel > 0


def test_workload_is_what_the_configuration_says() -> None:
    config = make_config(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=4,
        virtual_pipeline_model_parallel_size=2,
        recompute_granularity="selective",
        recompute_modules=["mlp"],
        micro_batch_size=2,
        fp8="hybrid",
    )
    architecture = config.model.architecture()
    work = Workload.of(config, architecture, world_size=64, seq_length=4096, document_tokens=300.0)
    assert (work.tensor_parallel, work.pipeline_parallel, work.chunks, work.data_parallel, work.gpus) == (
        2,
        4,
        2,
        8,
        64,
    )
    assert (work.num_microbatches, work.recomputed, work.precision, work.attended_length) == (8, ("mlp",), "fp8", 300.0)
    assert work.tokens_per_step == 128 * 4096
    config.data.isolate_documents = False
    assert (
        Workload.of(config, architecture, world_size=64, seq_length=4096, document_tokens=300.0).attended_length == 4096
    )


def test_constants_lie_in_their_ranges() -> None:
    for name, (low, high) in RANGES.items():
        assert low <= getattr(C, name) <= high, name


def test_every_gpu_has_the_peaks_of_its_data_sheet() -> None:
    rates = {gpu.name: gpu.peak_flops_per_s for gpu in GPUS.values()}
    assert rates["a100-80gb"] == 312e12 and rates["h100"] == rates["h200"] == 989e12 and rates["b200"] == 2250e12
    for gpu in GPUS.values():
        assert 30 < gpu.memory_gib < 200 and 1.5e12 <= gpu.memory_bytes_per_s <= 8e12
        assert (gpu.peak_fp8_flops_per_s is None) == (gpu.generation == "ampere")
        assert gpu.peak_fp8_flops_per_s is None or gpu.peak_fp8_flops_per_s == pytest.approx(
            2 * gpu.peak_flops_per_s, rel=0.002
        )


def test_unknown_gpu_and_network_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown GPU: got 'a100', need one of .*a100-80gb"):
        get_gpu("a100")
    with pytest.raises(ConfigError, match=r"unknown network: got 'wifi', need one of ib-hdr"):
        network_bytes_per_s("wifi", A100)
    assert network_bytes_per_s(None, A100)[0] == "ib-hdr" and network_bytes_per_s(None, get_gpu("h100"))[0] == "ib-ndr"
    assert NETWORKS["ib-ndr"] == 50e9
