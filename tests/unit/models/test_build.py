"""Models as built: their size, their rows, their head, their rounding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_huatuo.checkpoint.load_hf import load_hf_weights
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.core.build_model import build_model, transformer_config
from megatron_huatuo.models.families import get_preset, presets
from tests.unit.convert.small_models import SMALL, oracle_logits, write_model

PARAMETERS = {
    "baichuan2-7b": 7_505_973_248,
    "baichuan2-13b": 13_896_668_160,
    "yi-34b": 34_388_917_248,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_has_the_published_number_of_parameters(alone: None, name: str) -> None:
    """Built on the meta device: all shapes, no memory."""
    with torch.device("meta"):
        model = build_model(get_preset(name), perform_initialization=False)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["llama", "baichuan2-alibi"])
def test_changing_one_document_leaves_the_outputs_of_the_others_unchanged(alone: None, name: str) -> None:
    model = build_model(SMALL[name])
    bounds = torch.tensor([0, 9, 24, 48], dtype=torch.int32)
    packed = PackedSeqParams("sbhd", bounds, bounds, max_seqlen_q=24, max_seqlen_kv=24)
    tokens = torch.randint(160, (2, 24))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 160
    with torch.no_grad():
        before, after = (model(rows, None, None, packed_seq_params=packed) for rows in (tokens, changed))
    same = (before == after).all(dim=-1)
    assert same[0, :9].all()
    assert same[1].all()
    assert not same[0, 9:].any()


def test_without_documents_a_row_is_one_sequence(alone: None) -> None:
    """The switch for the reference behaviour: conversations of a row attend to each other."""
    model = build_model(SMALL["llama"])
    tokens = torch.randint(160, (1, 24))
    whole = PackedSeqParams("sbhd", *(torch.tensor([0, 24], dtype=torch.int32),) * 2, max_seqlen_q=24, max_seqlen_kv=24)
    with torch.no_grad():
        assert torch.equal(model(tokens, None, None), model(tokens, None, None, packed_seq_params=whole))


def test_norm_head_never_changes_the_stored_weight(alone: None) -> None:
    model = build_model(SMALL["baichuan2-rope"])
    before = model.output_layer.weight.detach().clone()
    tokens = torch.randint(160, (1, 12))
    with torch.no_grad():
        first = model.eval()(tokens, None, None)
        second = model(tokens, None, None)
        trained = model.train()(tokens, None, None)
    assert torch.equal(model.output_layer.weight, before)
    assert torch.equal(first, second)
    assert torch.equal(first, trained)
    # Scaling a row of the weight changes nothing: only its direction counts.
    model.output_layer.weight.data *= 3.0
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, None, None), first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen2-tied", "baichuan2-rope", "baichuan2-alibi"])
def test_bf16_error_is_at_most_twice_that_of_the_plain_implementation(alone: None, tmp_path: Path, name: str) -> None:
    architecture = SMALL[name]
    directory = write_model(tmp_path / "hf", architecture)
    tokens = torch.randint(160, (1, 64), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        (exact,), _ = oracle_logits(directory, architecture, [tokens[0]], torch.float32)
        (plain,), _ = oracle_logits(directory, architecture, [tokens[0]], torch.bfloat16)
        model = build_model(architecture, precision="bf16", perform_initialization=False)
        load_hf_weights([model], directory, architecture)
        ours = model(tokens, None, None)[0]
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).norm() <= 2 * (plain.float() - exact).norm()


def test_wrong_settings_are_refused(alone: None) -> None:
    bounds = torch.tensor([0, 8], dtype=torch.int32)
    with pytest.raises(ConfigError, match="wrong qkv_format of packed rows: got 'thd', need 'sbhd'"):
        build_model(SMALL["baichuan2-alibi"])(
            torch.zeros(1, 8, dtype=torch.long), None, None, packed_seq_params=PackedSeqParams("thd", bounds, bounds)
        )
    with pytest.raises(ConfigError, match="wrong precision: got 'fp16', need one of fp32, bf16"):
        build_model(get_preset("toy"), precision="fp16")


def test_every_published_vocabulary_divides_over_the_ranks_of_a_machine() -> None:
    for name, architecture in presets().items():
        assert all(architecture.vocab_size % size == 0 for size in (1, 2, 4, 8, 16, 32)), name


@pytest.mark.parametrize("norm_head", [False, True])
def test_a_vocabulary_is_never_padded_and_the_sizes_that_fit_are_named(norm_head: bool) -> None:
    """A zero row under a normalised head has gradients of 1e10; a plain head follows the same rule."""
    grown = dataclasses.replace(SMALL["baichuan2-rope" if norm_head else "llama"], vocab_size=64_004)
    match = r"tensor_model_parallel_size: got 8, need a divisor of the vocabulary's 64004 rows: 1, 2, 4\. "
    with pytest.raises(ConfigError, match=match):
        transformer_config(grown, tensor_model_parallel_size=8)
    fitting = dataclasses.replace(grown, num_attention_heads=8, num_query_groups=8)
    assert transformer_config(fitting, tensor_model_parallel_size=4).tensor_model_parallel_size == 4


def test_a_head_is_never_split_over_ranks() -> None:
    with pytest.raises(ValueError, match=r"num_attention_heads \(5\) must be a multiple of tensor_model_parallel_size"):
        transformer_config(SMALL["llama-odd-heads-tied"], tensor_model_parallel_size=2)
