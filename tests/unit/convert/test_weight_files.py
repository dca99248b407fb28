"""Damaged, incomplete and malicious weight files: the error names tensor and file, and nothing is executed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_huatuo.checkpoint.hf_weight_files import open_weights
from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.errors import DataError, IntegrityError
from tests.unit.convert.small_models import SMALL, write_model

NAME = "model.layers.1.mlp.down_proj.weight"


def _rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(directory / "model.safetensors")
    for name, value in changes.items():
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    save_file(weights, directory / "model.safetensors")


def _shard(directory: Path) -> None:
    """Split model.safetensors into two shards with an index."""
    weights = load_file(directory / "model.safetensors")
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, rf"tensor is missing: '{NAME}'"),
        (
            torch.zeros(3, 4),
            rf"wrong shape of tensor '{NAME}': got \[3, 4\], need \[96, 136\] \(.*model\.safetensors\)",
        ),
        (
            torch.full((96, 136), float("nan")),
            rf"tensor '{NAME}' holds NaN or infinite values \(.*model\.safetensors\)",
        ),
        (torch.full((96, 136), float("inf")), rf"tensor '{NAME}' holds NaN or infinite values"),
    ],
    ids=["missing", "mis-shaped", "NaN", "infinite"],
)
def test_bad_tensor_is_named_and_nothing_is_written(tmp_path: Path, value: torch.Tensor | None, message: str) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    _rewrite(directory, **{NAME: value})
    with pytest.raises(DataError, match=message):
        import_hf(directory, tmp_path / "checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.layers.1.input_layernorm.weight"])
def test_mixed_types_are_refused(tmp_path: Path, name: str) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    _rewrite(directory, **{name: load_file(directory / "model.safetensors")[name].bfloat16()})
    with pytest.raises(DataError, match=r"has another type than .*: got torch\.bfloat16, need torch\.float32"):
        import_hf(directory, tmp_path / "checkpoint")


def test_extra_tensor_is_named(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    _rewrite(directory, **{"model.layers.2.input_layernorm.weight": torch.ones(96)})
    with pytest.raises(DataError, match=r"unknown tensor: 'model\.layers\.2\.input_layernorm\.weight'"):
        open_weights(directory, SMALL["llama"])


def test_derived_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    _rewrite(directory, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    open_weights(directory, SMALL["llama"])


def test_names_of_another_model_are_shown(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    weights = load_file(directory / "model.safetensors")
    save_file({f"base_model.model.{name}": tensor for name, tensor in weights.items()}, directory / "model.safetensors")
    with pytest.raises(
        DataError, match=r"'model\.embed_tokens\.weight' in .*, which has 'base_model\.model\..*'\. Check"
    ):
        open_weights(directory, SMALL["llama"])


def test_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["qwen2-tied"])
    _rewrite(directory, **{"lm_head.weight": load_file(directory / "model.safetensors")["model.embed_tokens.weight"]})
    open_weights(directory, SMALL["qwen2-tied"])
    _rewrite(directory, **{"lm_head.weight": torch.ones(160, 96)})
    with pytest.raises(DataError, match=r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight', though config"):
        open_weights(directory, SMALL["qwen2-tied"])


def test_shards_and_their_faults(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    _shard(directory)
    open_weights(directory, SMALL["llama"])
    os.rename(directory / "b.safetensors", directory / "elsewhere")
    with pytest.raises(IntegrityError, match=r"shard is missing: model\.safetensors\.index\.json places '.*' in .*b\."):
        open_weights(directory, SMALL["llama"])
    os.rename(directory / "elsewhere", directory / "b.safetensors")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    moved = {**index["weight_map"], "lm_head.weight": "b.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(
        IntegrityError, match=r"tensor is missing: the index places 'lm_head\.weight' in .*b\.safetensors"
    ):
        open_weights(directory, SMALL["llama"])
    outside = dict.fromkeys(index["weight_map"], "../a.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(IntegrityError, match="shard is missing"):
        open_weights(directory, SMALL["llama"])
    (directory / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(IntegrityError, match="shard index has no 'weight_map'"):
        open_weights(directory, SMALL["llama"])


@pytest.mark.parametrize("kept", [0, 5, 400, -1])
def test_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:kept])
    with pytest.raises(IntegrityError, match=r"file is incomplete or not safetensors: .*model\.safetensors"):
        open_weights(directory, SMALL["llama"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_old_bin_files_give_the_same_weights(tmp_path: Path, zipped: bool) -> None:
    directory = write_model(tmp_path / "hf", SMALL["baichuan2-alibi"])
    weights = load_file(directory / "model.safetensors")
    torch.save(weights, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (directory / "model.safetensors").unlink()
    files = open_weights(directory, SMALL["baichuan2-alibi"])
    for name, tensor in weights.items():
        assert torch.equal(files.read(name, 0, 0, tensor.shape[0]), tensor)
        if tensor.dim() == 2:
            assert torch.equal(files.read(name, 1, 3, 9), tensor[:, 3:9])


class _Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_bin_file_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    (directory / "model.safetensors").unlink()
    content = {"lm_head.weight": _Harm(tmp_path / "harm")}
    torch.save(content, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(IntegrityError, match=r"holds more than tensors: .*pytorch_model\.bin"):
        open_weights(directory, SMALL["llama"])
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_bin_file_is_named(tmp_path: Path, zipped: bool) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    path = directory / "pytorch_model.bin"
    torch.save(load_file(directory / "model.safetensors"), path, _use_new_zipfile_serialization=zipped)
    (directory / "model.safetensors").unlink()
    for kept in (0, 3, 1000, path.stat().st_size - 1000):
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(
            IntegrityError, match=r"file is incomplete, or holds more than tensors: .*pytorch_model\.bin"
        ):
            open_weights(directory, SMALL["llama"])


def test_remote_code_beside_the_weights_is_not_executed(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["baichuan2-rope"])
    (directory / "modeling_baichuan.py").write_text(f"import os; os.mkdir({str(tmp_path / 'harm')!r})")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"}
    (directory / "config.json").write_text(json.dumps(config))
    import_hf(directory, tmp_path / "checkpoint")
    assert not (tmp_path / "harm").exists()


def test_directory_without_weights_is_named_with_what_it_holds(tmp_path: Path) -> None:
    for found in ("none", "model-Q4_K_M.gguf"):
        with pytest.raises(
            IntegrityError, match=rf"no weights in .*: got {found}, need model\.safetensors or pytorch_model\."
        ):
            open_weights(tmp_path, SMALL["llama"])
        (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_clone_without_lfs_is_told_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 135\n")
    with pytest.raises(DataError, match=rf"pointer of Git LFS instead of the file: .*{name}\. Fetch the file with"):
        open_weights(tmp_path, SMALL["llama"])
