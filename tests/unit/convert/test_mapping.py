"""The name table: complete, exact in both directions, for every tensor-parallel slice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.models.weight_table import (
    each_weight,
    hf_shapes,
    rule_of_parameter,
    rules_by_parameter,
    weight_rules,
)
from tests.unit.convert.small_models import SMALL, random_weights

SHARED = Path(__file__).parents[4] / "shared" / "data" / "baichuan2"


def test_real_weight_names_of_baichuan2_13b_map_completely_both_ways() -> None:
    path = SHARED / "13b" / "weight_names.json"
    if not path.is_file():
        pytest.skip(f"no published list of weight names: {path}")
    index = json.loads(path.read_text())
    architecture = get_preset("baichuan2-13b")
    shapes = hf_shapes(architecture)
    assert set(shapes) == set(index["weight_map"])
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) * 2 == index["metadata"]["total_size"]
    parts = [name for rule, layer in each_weight(architecture) for name in rule.part_names(layer)]
    assert len(parts) == len(set(parts)) == len(shapes)


def _reader(weights: dict[str, torch.Tensor]):
    return lambda name, axis, start, stop: weights[name].narrow(axis, start, stop - start)


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_is_bitwise_and_uses_every_weight(name: str) -> None:
    weights = random_weights(SMALL[name])
    back = {}
    for rule, layer in each_weight(SMALL[name]):
        whole = rule.gather(_reader(weights), layer)
        assert tuple(whole.shape) == rule.shape
        for part, ranges in rule.row_ranges(layer):
            back[part] = torch.cat([whole[start:stop] for start, stop in ranges])
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_worked_example_of_grouped_queries() -> None:
    """4 query heads in 2 groups, head_dim 8: q0 q1 k0 v0 | q2 q3 k1 v1."""
    architecture = Architecture("llama", 1, 32, 16, 4, 2, 8, 16, 1e-5, 1e4, 64)
    rule = next(r for r in weight_rules(architecture) if r.key.endswith("linear_qkv.weight"))
    expected = [(0, 0, 16), (1, 0, 8), (2, 0, 8), (0, 16, 32), (1, 8, 16), (2, 8, 16)]
    assert [tuple(piece) for piece in rule.pieces] == expected
    assert [tuple(piece) for piece in rule.rank_pieces(1, 2)] == expected[3:]
    # Four ranks and two groups: a rank holds half of a group's rows, whatever they are.
    assert [tuple(piece) for piece in rule.rank_pieces(1, 4)] == [(1, 0, 8), (2, 0, 8)]


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 4),
    heads_per_group=st.integers(1, 3),
    head_dim=st.sampled_from([2, 4, 8]),
    size=st.sampled_from([1, 2, 4]),
    family=st.sampled_from(["llama", "qwen2", "baichuan2"]),
)
def test_slices_of_all_ranks_make_the_whole(
    groups: int, heads_per_group: int, head_dim: int, size: int, family: str
) -> None:
    if family == "baichuan2":
        heads_per_group = 1
    architecture = Architecture(
        family,
        num_layers=1,
        hidden_size=4,
        ffn_hidden_size=8,
        num_attention_heads=groups * heads_per_group,
        num_query_groups=groups,
        head_dim=head_dim,
        vocab_size=16,
        norm_epsilon=1e-5,
        rope_theta=1e4,
        max_position_embeddings=64,
        qkv_bias=family == "qwen2",
    )
    weights = random_weights(architecture)
    for rule, layer in each_weight(architecture):
        if rule.shape[rule.axis] % size and rule.sharded:
            continue
        whole = rule.gather(_reader(weights), layer)
        slices = [rule.gather(_reader(weights), layer, rank, size) for rank in range(size)]
        if not rule.sharded:
            assert all(torch.equal(part, whole) for part in slices)
        elif rule.gated:  # rank r holds [gate_r ; up_r]
            halves = [part.chunk(2) for part in slices]
            assert torch.equal(torch.cat([gate for gate, _ in halves] + [up for _, up in halves]), whole)
        else:
            assert torch.equal(torch.cat(slices, dim=rule.axis), whole)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_of_the_built_model_has_a_rule(alone: None, name: str) -> None:
    from megatron_huatuo.models.core.build_model import build_model

    rules = rules_by_parameter(SMALL[name])
    used = []
    for key, parameter in build_model(SMALL[name]).named_parameters():
        rule, layer = rule_of_parameter(key, rules)
        assert tuple(parameter.shape) == rule.shape
        used.append((rule.key, layer))
    assert sorted(used) == sorted((rule.key, layer) for rule, layer in each_weight(SMALL[name]))
