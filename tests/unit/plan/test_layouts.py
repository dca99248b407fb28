"""Layouts: every one that fits, in order, with flags that give exactly the run that was planned."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.config import argument_parser, dump_yaml
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.plan.gpus import get_gpu
from megatron_huatuo.plan.layouts import check_plan, layout_name, rank_layouts
from megatron_huatuo.plan.plan import Cluster, PlannedData, plan_run
from megatron_huatuo.plan.plan_text import format_layouts
from megatron_huatuo.train.train_config import TrainConfig
from tests.unit.plan.plans import make_config, plan_7b

DATA = PlannedData(128_000, 4096)


def test_layouts_are_ranked_and_each_refusal_has_its_reason() -> None:
    layouts = rank_layouts(make_config("yi-34b"), Cluster(get_gpu("h100"), 16), DATA)
    times = [plan.step_time_s for plan in layouts.fitting]
    assert len(times) > 20 and times == pytest.approx(sorted(times))
    assert all(plan.refusal is None for plan in layouts.fitting)
    reasons = {refused.reason.split(":")[0].split(" GiB")[0][:5] for refused in layouts.refused}
    assert reasons >= {"needs", "wrong"}
    text = format_layouts(layouts)
    assert layout_name(layouts.fitting[0].config, 16) in text and "too little GPU memory" in text


def test_layouts_are_those_that_can_be_and_no_others() -> None:
    """Two GPUs and two layers: TP 1 or 2, PP 1 or 2, micro-batches that divide 4 rows a rank, 4 kinds of recomputation."""
    layouts = rank_layouts(
        make_config("toy", global_batch_size=8), Cluster(get_gpu("a100-80gb"), 2), PlannedData(80, 256)
    )
    assert not layouts.refused
    found = {
        (
            plan.config.parallel.tensor_model_parallel_size,
            plan.config.parallel.pipeline_model_parallel_size,
            plan.config.training.micro_batch_size,
        )
        for plan in layouts.fitting
    }
    data_parallel = {(1, 1, size) for size in (1, 2, 4)}
    divided = {(2, 1, size) for size in (1, 2, 4, 8)} | {(1, 2, size) for size in (1, 2, 4, 8)}
    assert found == data_parallel | divided and len(layouts.fitting) == 4 * len(found)


def test_what_decides_the_loss_is_the_same_in_every_layout() -> None:
    config = make_config("toy", global_batch_size=8)
    architecture = config.model.architecture()
    layouts = rank_layouts(config, Cluster(get_gpu("a100-80gb"), 2), PlannedData(80, 256))
    assert {plan.config.fingerprint(architecture) for plan in layouts.fitting} == {config.fingerprint(architecture)}


def test_more_memory_never_loses_a_layout() -> None:
    names = [
        {layout_name(plan.config, 8) for plan in rank_layouts(make_config(), Cluster(get_gpu(gpu), 8), DATA).fitting}
        for gpu in ("a100-40gb", "a100-80gb")
    ]
    assert names[0] < names[1]


def test_what_does_not_fit_is_refused_with_layouts_that_fit() -> None:
    plan = plan_7b()
    with pytest.raises(ConfigError, match=r"needs \d+\.\d GiB on a GPU of stage 0, a100-80gb has 79\.1") as refused:
        check_plan(plan)
    assert "--parallel.tensor_model_parallel_size" in str(refused.value)
    best = rank_layouts(plan.config, plan.cluster, plan.data).fitting[0]
    assert f"{best.tokens_per_s_per_gpu:,.0f} tokens/s/GPU" in str(refused.value).splitlines()[1]


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
    for flags, other in zip(proposals, rank_layouts(plan.config, plan.cluster, plan.data).fitting, strict=False):
        options = parser.instantiate(parser.parse_args(["--config", str(config_file), *shlex.split(flags)]))
        config = TrainConfig(**{field.name: options[field.name] for field in dataclasses.fields(TrainConfig)})
        assert plan_run(config, plan.cluster, plan.data) == other


def test_what_fits_nowhere_is_said() -> None:
    with pytest.raises(ConfigError, match="No layout of 1 such GPUs holds it: use more, or larger ones"):
        check_plan(plan_7b(gpus=1))
