"""docs/add_a_backbone.md: the family that it adds, from the one file that stands there, both ways."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models import families
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.models.weight_table import hf_shapes
from tests.unit.convert.small_models import SMALL, write_model

ROOT = Path(__file__).parents[3]


@pytest.fixture
def willow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class in the document's Python block, registered for one test."""
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add_a_backbone.md").read_text(), re.DOTALL)
    (tmp_path / "willow.py").write_text(code)
    spec = importlib.util.spec_from_file_location("willow", tmp_path / "willow.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    families.register_family(module.Willow())
    yield module.Willow


@pytest.mark.slow
def test_a_family_of_one_file_converts_both_ways(willow: Any, tmp_path: Path, tokenizer_directory: Path) -> None:
    architecture = dataclasses.replace(SMALL["llama"], family="willow", vocab_size=448)
    source = write_model(tmp_path / "hf", architecture)
    (source / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
    assert load_architecture(source) == architecture
    assert hf_shapes(architecture)["model.layers.1.mlp.gate_up_proj.weight"] == (272, 96)
    import_hf(source, tmp_path / "checkpoint")
    parity = export_checkpoint(tmp_path / "checkpoint", tmp_path / "out")
    assert parity.continuation_tokens == 16 and parity.max_logit_difference < 1e-4
    before, after = (load_file(directory / "model.safetensors") for directory in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert families.get_preset("willow-2b").head_dim == 128


def test_packed_gate_is_split_into_gate_and_up_over_ranks(willow: Any) -> None:
    architecture = dataclasses.replace(SMALL["llama"], family="willow")
    rule = next(r for r in families.get_family("willow").layer_rules(architecture) if "linear_fc1.weight" in r.key)
    assert [tuple(piece) for piece in rule.rank_pieces(1, 2)] == [(0, 68, 136), (0, 204, 272)]


def test_a_key_that_the_family_does_not_know_is_refused(willow: Any, tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf", dataclasses.replace(SMALL["llama"], family="willow"))
    text = (source / "config.json").read_text()
    for added, message in (
        ('"resid_pdrop": 0.1', "unsupported setting 'resid_pdrop': got 0.1, need 0"),
        ('"leaves": 3', "unknown setting 'leaves' = 3"),
    ):
        (source / "config.json").write_text(text.replace("{", "{" + added + ",", 1))
        with pytest.raises(ConfigError, match=message):
            load_architecture(source)


def test_names_that_are_taken_are_refused(willow: Any) -> None:
    with pytest.raises(ConfigError, match="family is registered already: got name = 'willow'"):
        families.register_family(willow())

    class Other(willow):  # type: ignore[misc]
        name = "other"
        model_type = "other"

    with pytest.raises(ConfigError, match="preset is registered already: got 'willow-2b' of family 'other'"):
        families.register_family(Other())


def test_no_other_file_branches_on_the_name_of_a_family() -> None:
    names = "|".join(families._FAMILIES)
    branch = re.compile(rf"""(family|model_type)\s*(==|!=|in\b|not in\b)[^\n]*["']({names})["']""")
    package = ROOT / "megatron_huatuo"
    own = {Path(inspect.getfile(type(family))) for family in families._FAMILIES.values()}
    found = [str(path) for path in package.rglob("*.py") if path not in own and branch.search(path.read_text())]
    assert found == []
