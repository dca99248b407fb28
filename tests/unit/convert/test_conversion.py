"""Import and export without a model: bitwise, in shards, complete or absent."""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_huatuo.checkpoint import streaming
from megatron_huatuo.checkpoint.integrity import verify_checkpoint
from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.convert.state_tensors import StateReader
from megatron_huatuo.convert.write_hf_weights import write_weights
from megatron_huatuo.errors import ConfigError, DataError, HuatuoError, IntegrityError
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.models.weight_table import hf_shapes, weight_rules
from megatron_huatuo.storage.hashed_file import HashedFile
from megatron_huatuo.storage.manifest import read_manifest, sha256_file, verify_files
from megatron_huatuo.storage.run_files import STATE, resolve_checkpoint
from tests.unit.convert.small_models import SMALL, random_weights, write_model


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hugging_face_to_checkpoint_and_back_is_bitwise(
    tmp_path: Path, name: str, dtype: torch.dtype, monkeypatch
) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 5000)  # several pieces a tensor
    directory = write_model(tmp_path / "hf", SMALL[name], dtype)
    checkpoint = import_hf(directory, tmp_path / "checkpoint")
    assert resolve_checkpoint(tmp_path / "checkpoint") == checkpoint
    verify_checkpoint(checkpoint)
    state = StateReader(checkpoint / STATE, SMALL[name])
    assert state.dtype == dtype
    files = sorted((checkpoint / STATE).glob("*.distcp"))
    framing = 2048 * len(files)  # of torch.save
    assert sum(path.stat().st_size for path in files) < (directory / "model.safetensors").stat().st_size + framing
    (tmp_path / "out").mkdir()
    write_weights(tmp_path / "out", hf_shapes(SMALL[name]), state, dtype)
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def _rows(weights: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Each tensor in two parts, where it has two rows."""
    return [(name, rows) for name, weight in weights.items() for rows in weight.tensor_split(2) if len(rows)]


def test_shards_hold_at_most_the_limit_and_their_hashes_are_right(tmp_path: Path) -> None:
    weights = random_weights(SMALL["llama"])
    limit = 100_000
    shapes = hf_shapes(SMALL["llama"])
    written = write_weights(tmp_path, shapes, _rows(weights), torch.bfloat16, shard_bytes=limit)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(written) == set(index["weight_map"].values()) and len(written) > 2
    assert index["metadata"]["total_size"] == sum(weight.numel() * 2 for weight in weights.values())
    for name, described in written.items():
        path = tmp_path / name
        assert described == {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        content = load_file(path)
        assert sum(tensor.numel() * 2 for tensor in content.values()) <= limit
        for key, tensor in content.items():
            assert torch.equal(tensor, weights[key].bfloat16())
            assert index["weight_map"][key] == name


def test_a_single_shard_has_an_index_as_well(tmp_path: Path) -> None:
    shapes = {"a": (2, 3), "b": (4,)}
    write_weights(tmp_path, shapes, _rows({"a": torch.ones(2, 3), "b": torch.ones(4)}), torch.float32)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 40}, "weight_map": dict.fromkeys(shapes, "model.safetensors")}


def test_wrong_streams_are_refused(tmp_path: Path) -> None:
    shapes = {"a": (2, 3), "b": (4,)}
    good = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    with pytest.raises(DataError, match=r"wrong tensor: got 'b' \[2\], need 2 rows of 'a' \[2, 3\]"):
        write_weights(tmp_path, shapes, reversed(_rows(good)), torch.float32)
    with pytest.raises(DataError, match=r"wrong tensor: got 'nothing' \[0\], need 2 rows of 'b' \[4\]"):
        write_weights(tmp_path, shapes, _rows(good)[:-1], torch.float32)
    with pytest.raises(DataError, match="got 'c' after the last one"):
        write_weights(tmp_path, shapes, [*_rows(good), ("c", torch.ones(1))], torch.float32)
    with pytest.raises(DataError, match="tensor 'b' holds NaN or infinite values"):
        write_weights(tmp_path, shapes, _rows({**good, "b": torch.tensor([1, 2, float("nan"), 3])}), torch.float32)
    with pytest.raises(DataError, match=r"tensor 'b' holds NaN or infinite values as torch\.float16"):
        write_weights(tmp_path, shapes, _rows({**good, "b": torch.tensor([1, 2, 70000.0, 3])}), torch.float16)


def test_tokenizer_with_more_ids_than_the_embedding_is_refused_before_weights_are_read(
    tmp_path: Path, tokenizer_directory: Path
) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    shutil.copy(tokenizer_directory / "tokenizer.model", directory)
    weights = load_file(directory / "model.safetensors")
    save_file(
        {**weights, "model.embed_tokens.weight": torch.full((160, 96), torch.nan)}, directory / "model.safetensors"
    )
    with pytest.raises(DataError, match=r"got \d+ ids, but the embedding has 160 rows"):
        import_hf(directory, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    checkpoint = import_hf(write_model(tmp_path / "hf", SMALL["llama"]), tmp_path / "checkpoint")
    with pytest.raises(
        IntegrityError, match=r"'embedding\.word_embeddings\.weight' is \[160, 96\], need \[3072, 192\]"
    ):
        StateReader(checkpoint / STATE, get_preset("toy"))


def test_layer_that_is_stored_in_part_is_refused(tmp_path: Path) -> None:
    checkpoint = import_hf(write_model(tmp_path / "hf", SMALL["llama"]), tmp_path / "checkpoint")
    state, rule = StateReader(checkpoint / STATE, SMALL["llama"]), weight_rules(SMALL["llama"])[0]
    state._tensors[rule.key].chunks.clear()
    with pytest.raises(IntegrityError, match=rf"checkpoint lacks a part of layer 0 of '{rule.key}': got 0 values"):
        state.read(rule, 0)


def test_benchmark_needs_a_size_with_layers() -> None:
    from benchmarks import convert
    from benchmarks.settings import ConvertBenchmark

    with pytest.raises(ConfigError, match=r"wrong gigabytes: got 0\.5, need 1 or more"):
        convert.run(ConvertBenchmark(gigabytes=0.5))


_FORK = multiprocessing.get_context("fork")  # a child with torch loaded already


def _on_a_full_disk(action: Callable[[], object], message: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
    try:
        action()
    except HuatuoError as error:
        message.write_text(str(error))


@pytest.mark.parametrize("direction", ["import", "export"])
def test_disk_full_is_said_and_leaves_nothing(tmp_path: Path, direction: str) -> None:
    """A limit on file size makes the write fail as a full disk does, with an error from the system."""
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    if direction == "import":
        action = functools.partial(import_hf, directory, tmp_path / "out")
    else:
        checkpoint = import_hf(directory, tmp_path / "checkpoint")
        action = functools.partial(export_checkpoint, checkpoint, tmp_path / "out", skip_verification=True)
    before = {path.name for path in tmp_path.iterdir()}
    child = _FORK.Process(target=_on_a_full_disk, args=(action, tmp_path / "message"))
    child.start()
    child.join(60)
    assert re.match(r"cannot write .*\.(distcp|safetensors): \[Errno 27\]", (tmp_path / "message").read_text())
    assert {path.name for path in tmp_path.iterdir()} - {"message"} == before


_DIRECTIONS = {
    "import": lambda hf, checkpoint, out: import_hf(hf, out),
    "export": lambda hf, checkpoint, out: export_checkpoint(checkpoint, out, skip_verification=True),
}


def _check_complete(direction: str, out: Path) -> None:
    if direction == "import":
        verify_checkpoint(resolve_checkpoint(out))
    else:
        verify_files(out, read_manifest(out, "hf_model"))


@pytest.mark.slow
@pytest.mark.parametrize("direction", _DIRECTIONS)
def test_kill_at_any_moment_leaves_all_or_nothing_and_a_rerun_finishes(tmp_path: Path, direction: str) -> None:
    hf = write_model(tmp_path / "hf", SMALL["llama"])
    arguments = (hf, import_hf(hf, tmp_path / "checkpoint"), tmp_path / "out")
    convert = _DIRECTIONS[direction]
    began = time.monotonic()
    convert(*arguments)
    duration_s = min(0.5, time.monotonic() - began)  # on a busy machine most moments are early ones
    names = {path.name for path in tmp_path.iterdir()}
    killed = left_behind = 0
    for moment in range(12):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        child = _FORK.Process(target=convert, args=arguments)
        child.start()
        child.join(duration_s * (moment + 0.5) / 10)
        child.kill()
        child.join(60)
        killed += child.exitcode == -signal.SIGKILL
        if (tmp_path / "out").exists():
            _check_complete(direction, tmp_path / "out")
        left_behind += len(list(tmp_path.glob(".out.*.tmp")))
    assert killed > 2 and left_behind > 0
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    convert(*arguments)
    _check_complete(direction, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == names


def _die_before_the_second_weight(*arguments: Path) -> None:
    write = HashedFile.write

    def write_and_die(file: HashedFile, data: object) -> int:
        count = write(file, data)
        if file.bytes > 30_000:  # in the middle of the embedding
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    HashedFile.write = write_and_die
    _DIRECTIONS[arguments[0]](*arguments[1:])


@pytest.mark.parametrize("direction", _DIRECTIONS)
def test_kill_in_the_middle_of_a_weight_publishes_nothing(tmp_path: Path, direction: str) -> None:
    hf = write_model(tmp_path / "hf", SMALL["llama"])
    arguments = (hf, import_hf(hf, tmp_path / "checkpoint"), tmp_path / "out")
    child = _FORK.Process(target=_die_before_the_second_weight, args=(direction, *arguments))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".out.*.tmp")) and not (tmp_path / "out").exists()
    _DIRECTIONS[direction](*arguments)
    _check_complete(direction, tmp_path / "out")
    assert not list(tmp_path.glob(".out.*.tmp"))


def test_rows_beyond_the_tokenizer_are_kept_on_both_ways(tmp_path: Path) -> None:
    """As published: Qwen2.5's 151,936 or 152,064 rows for a tokenizer of 151,665 ids."""
    from megatron_huatuo.index.tokenizer import load_tokenizer
    from tests.unit.convert.test_tokenizer_files import byte_level_tokenizer

    architecture = dataclasses.replace(SMALL["qwen2"], vocab_size=448)
    hf = write_model(tmp_path / "hf", architecture)
    byte_level_tokenizer(hf)
    assert load_tokenizer(hf).vocab_size < 440
    checkpoint = import_hf(hf, tmp_path / "checkpoint")
    export_checkpoint(checkpoint, tmp_path / "out", skip_verification=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (hf, tmp_path / "out"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert after[name].shape == (448, 96) and torch.equal(before[name], after[name])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 448


def test_end_that_only_config_json_names_comes_along(tmp_path: Path) -> None:
    """A tokenizer.json without tokenizer_config.json beside it."""
    from megatron_huatuo.index.tokenizer import load_tokenizer
    from tests.unit.convert.test_tokenizer_files import byte_level_tokenizer

    hf = write_model(tmp_path / "hf", dataclasses.replace(SMALL["qwen2"], vocab_size=448, eos_token_id=0))
    (byte_level_tokenizer(hf) / "tokenizer_config.json").unlink()
    checkpoint = import_hf(hf, tmp_path / "checkpoint")
    verify_checkpoint(checkpoint)
    export_checkpoint(checkpoint, tmp_path / "out", skip_verification=True)
    assert load_tokenizer(tmp_path / "out").eos_id == load_tokenizer(hf).eos_id == 0
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"


@pytest.mark.slow
def test_float16_model_comes_back_as_float16_or_as_what_is_asked_for(tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", SMALL["llama"], torch.float16)
    checkpoint = import_hf(hf, tmp_path / "checkpoint")
    export_checkpoint(checkpoint, tmp_path / "out")
    export_checkpoint(checkpoint, tmp_path / "bf16", dtype="bfloat16")
    before = load_file(hf / "model.safetensors")
    for folder, dtype in (("out", torch.float16), ("bf16", torch.bfloat16)):
        after = load_file(tmp_path / folder / "model.safetensors")
        assert all(torch.equal(after[name], before[name].to(dtype)) for name in before)
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_a_key_known_to_be_harmless_is_ignored_on_request_and_recorded(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "_private_note": 3, "quality_tag": "gold"}))
    with pytest.raises(ConfigError, match=r"unknown setting 'quality_tag' = 'gold'.*--ignore-config-key quality_tag"):
        import_hf(directory, tmp_path / "checkpoint")
    checkpoint = import_hf(directory, tmp_path / "checkpoint", ignored_keys=["quality_tag"])
    assert read_manifest(checkpoint, "checkpoint")["ignored_config_keys"] == ["quality_tag"]
    export_checkpoint(checkpoint, tmp_path / "out", skip_verification=True)
    assert "| Keys of config.json ignored on request | quality_tag |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_two_sets_of_weights_are_refused_naming_both(other: str, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    (directory / other).write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(DataError, match="two sets of weights: got") as refused:
        import_hf(directory, tmp_path / "checkpoint")
    assert "model.safetensors" in str(refused.value) and other in str(refused.value)
    assert "hf download takes --exclude '*.bin'" in str(refused.value)
    assert not (tmp_path / "checkpoint").exists()
