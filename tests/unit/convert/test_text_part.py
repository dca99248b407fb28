"""Models of text and pictures: the text part is read, whatever its tensors are called, and the rest is left out by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_huatuo.checkpoint.hf_weight_files import open_weights
from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.convert.verify import verify_export
from megatron_huatuo.errors import DataError
from megatron_huatuo.models.hf_config import load_architecture


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gemma 3 with a vision tower, as transformers saves it."""
    import transformers

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.Gemma3TextConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=160,
        sliding_window=5,
        sliding_window_pattern=3,
        query_pre_attn_scalar=20,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    torch.manual_seed(1)
    model = transformers.Gemma3ForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    directory = tmp_path_factory.mktemp("pictured") / "hf"
    model.save_pretrained(directory)
    return directory


def _renamed(source: Path, target: Path, old: str, new: str) -> Path:
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    save_file({name.replace(old, new): value for name, value in weights.items()}, target / "model.safetensors")
    return target


@pytest.mark.slow
def test_the_text_part_computes_what_the_whole_model_computes(
    pictured: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    architecture = load_architecture(pictured)
    assert architecture.windows() == [5, 5, None] and architecture.rope_factor == 8.0
    import_hf(pictured, tmp_path / "checkpoint")
    assert "tensors of multi_modal_projector, vision_tower are left out of" in caplog.text
    assert verify_export(tmp_path / "checkpoint", pictured).max_logit_difference < 1e-4
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "out")
    whole, text = (load_file(directory / "model.safetensors") for directory in (pictured, tmp_path / "out"))
    assert load_architecture(tmp_path / "out") == architecture and len(text) == 3 * 13 + 2
    stored = {name.replace("language_model.model.", "model."): value for name, value in whole.items()}
    assert all(torch.equal(stored[name], value) for name, value in text.items())


def test_both_layouts_of_names_are_read(pictured: Path, tmp_path: Path) -> None:
    names = load_file(pictured / "model.safetensors")
    assert any(name.startswith("language_model.model.layers.0.") for name in names)
    newer = _renamed(pictured, tmp_path / "newer", "language_model.model.", "model.language_model.")
    for directory in (pictured, newer):
        files = open_weights(directory, load_architecture(directory))
        layer = files.read("model.layers.2.mlp.up_proj.weight", 0, 3, 9)
        assert torch.equal(layer, names["language_model.model.layers.2.mlp.up_proj.weight"][3:9])


def test_a_tensor_under_two_names_is_refused(pictured: Path, tmp_path: Path) -> None:
    both = _renamed(pictured, tmp_path / "both", "language_model.model.norm.", "language_model.model.norm.")
    weights = load_file(both / "model.safetensors")
    weights["model.norm.weight"] = weights["language_model.model.norm.weight"].clone()
    save_file(weights, both / "model.safetensors")
    with pytest.raises(DataError, match=r"tensor is there twice: .*model\.norm\.weight.* Keep one"):
        open_weights(both, load_architecture(both))


def test_a_tower_that_is_not_known_is_refused_by_name(pictured: Path, tmp_path: Path) -> None:
    other = _renamed(pictured, tmp_path / "other", "vision_tower.", "audio_tower.")
    with pytest.raises(DataError, match=r"unknown tensor: 'audio_tower\."):
        open_weights(other, load_architecture(other))
