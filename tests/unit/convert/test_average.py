"""Averages of checkpoints: exact in float32, of one model alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_huatuo.checkpoint.integrity import verify_checkpoint
from megatron_huatuo.convert.average import average_checkpoints
from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.storage.run_files import read_training_state
from tests.tool_process import run_tool
from tests.unit.convert.small_models import SMALL, random_weights, write_model

ROOT = Path(__file__).parents[3]


def models(folder: Path, name: str, dtype: torch.dtype, factors: list[float]) -> tuple[list[Path], list[dict]]:
    """Checkpoints whose weights are one random set times a factor each, and those weights."""
    architecture, base = SMALL[name], random_weights(SMALL[name], dtype)
    checkpoints, weights = [], []
    for number, factor in enumerate(factors):
        values = {key: (tensor.float() * factor).to(dtype) for key, tensor in base.items()}
        hf = write_model(folder / f"hf{number}", architecture, dtype)
        save_file(values, hf / "model.safetensors", metadata={"format": "pt"})
        checkpoints.append(import_hf(hf, folder / f"checkpoint{number}").parent)
        weights.append(values)
    return checkpoints, weights


@pytest.mark.parametrize("name", ["llama", "qwen2-tied", "baichuan2-alibi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_exact_in_float32(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoints, weights = models(tmp_path, name, dtype, [1.0, 0.5, -0.25])
    shares = [0.5, 0.375, 0.125]
    written = average_checkpoints(checkpoints, tmp_path / "mean", [4, 3, 1])
    export_checkpoint(written, tmp_path / "out", skip_verification=True)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in found.items():
        expected = torch.zeros(tensor.shape)
        for values, share in zip(weights, shares, strict=True):
            expected.add_(values[key].float(), alpha=share)
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected), key
    verify_checkpoint(written)
    averaged = read_training_state(written)["averaged"]
    assert [entry["weight"] for entry in averaged] == shares
    assert read_training_state(written)["optimizer_format"] is None


@pytest.mark.slow
def test_the_tool_averages_and_names_what_it_wrote(tmp_path: Path) -> None:
    checkpoints, _ = models(tmp_path, "llama", torch.float32, [1.0, 3.0])
    done = run_tool("convert_checkpoint", "average", "--checkpoints", *checkpoints, "--checkpoint", tmp_path / "mean")
    assert done.returncode == 0, done.stderr
    assert f"checkpoint: {tmp_path / 'mean' / 'iter_0000000'}" in done.stdout


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    checkpoints, _ = models(tmp_path, "llama", torch.float32, [1.0, 2.0])
    other = import_hf(
        write_model(tmp_path / "other_hf", dataclasses.replace(SMALL["llama"], rope_theta=1e6)), tmp_path / "other"
    )
    with pytest.raises(
        DataError, match=r"checkpoints are of different models: rope_theta is 1000000\.0 in .* and 500000\.0"
    ):
        average_checkpoints([*checkpoints, other], tmp_path / "mean")
    for weights, message in (
        ([1.0], "wrong --weights: got 1, need 2, one for each checkpoint"),
        ([1.0, -1.0], r"wrong --weights: got \[1\.0, -1\.0\], need numbers of 0 or more"),
        ([0.0, 0.0], "that do not sum to 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            average_checkpoints(checkpoints, tmp_path / "mean", weights)
    with pytest.raises(ConfigError, match="nothing to average: got 1 checkpoint"):
        average_checkpoints(checkpoints[:1], tmp_path / "mean")
    with pytest.raises(ConfigError, match="checkpoint is named twice"):
        average_checkpoints([checkpoints[0], checkpoints[0]], tmp_path / "mean")
    shard = next((checkpoints[1] / "iter_0000000" / "state").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="checkpoint file is damaged or missing"):
        average_checkpoints(checkpoints, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_other_tokenizers_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """`checkpoints` carry one tokenizer; a copy without it is another model."""
    first = checkpoints["llama"]
    hf = tmp_path / "hf"
    shutil.copytree(first.parent / "hf", hf)
    (hf / "tokenizer.model").unlink()
    bare = import_hf(hf, tmp_path / "bare")
    with pytest.raises(DataError, match="checkpoints have different tokenizers"):
        average_checkpoints([first, bare], tmp_path / "mean")


@pytest.mark.slow
def test_a_run_starts_from_an_average(saved_checkpoint: Path, tmp_path: Path) -> None:
    """Of a run's own checkpoint and a copy of it: the same weights come back."""
    twin = tmp_path / "twin" / saved_checkpoint.name
    shutil.copytree(saved_checkpoint, twin)
    written = average_checkpoints([saved_checkpoint, twin], tmp_path / "mean")
    assert written.name == saved_checkpoint.name
    assert json.loads((written / "architecture.json").read_text()) == json.loads(
        (saved_checkpoint / "architecture.json").read_text()
    )
    export_checkpoint(saved_checkpoint, tmp_path / "a", skip_verification=True)
    export_checkpoint(written, tmp_path / "b", skip_verification=True)
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key].float(), ours[key]) for key in ours)
