"""An export is a Hugging Face directory that computes what the checkpoint computes, or it is not there."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_huatuo.convert import publish
from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.convert.model_card import _parity_text
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.convert.verify import verify_export
from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.storage.manifest import read_manifest, verify_files
from megatron_huatuo.storage.run_files import resolve_checkpoint
from tests.tool_process import run_tool
from tests.unit.convert.conftest import FAMILIES

# Runs without this project: loads each directory as a user would, twice generates, and prints ids.
_LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
results = {}
for directory in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=True).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    chat = [{"role": "user", "content": "感冒怎么办？"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    runs = [model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist() for _ in range(2)]
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 5)[None].long()
    runs.append(model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)[0, 5:].tolist())
    unchanged = all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    with torch.no_grad():
        logits = model(ids).logits[0, -1].tolist()
    results[directory] = {"runs": runs, "unchanged": unchanged, "logits": logits}
assert not any(name.startswith("megatron_huatuo") for name in sys.modules)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def exports(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """{family: (directory, parity)}, and "llamafied" from Baichuan2 with rotary positions."""
    root = tmp_path_factory.mktemp("exports")
    found = {name: (root / name, export_checkpoint(path, root / name)) for name, path in checkpoints.items()}
    folded = export_checkpoint(checkpoints["baichuan2-rope"], root / "llamafied", llamafy=True)
    return {**found, "llamafied": (root / "llamafied", folded)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "llamafied"])
def test_logits_and_greedy_continuation_equal_the_training_model(exports, name: str) -> None:
    _, parity = exports[name]
    assert parity.max_logit_difference < 1e-4
    assert parity.continuation_tokens == 16
    assert (parity.tokenizer_texts, parity.tokenizer_mismatches) == (8, 0)
    assert parity.positions > 50


@pytest.mark.slow
def test_exports_load_and_generate_without_this_project(exports, tmp_path: Path) -> None:
    directories = [str(directory) for directory, _ in exports.values()]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, *directories],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for directory, result in results.items():
        first, again, padded = result["runs"]
        assert first == again == padded, directory
        assert result["unchanged"], directory
    ours, folded = (results[str(exports[name][0])]["logits"] for name in ("baichuan2-rope", "llamafied"))
    assert ours == pytest.approx(folded, abs=1e-4)


@pytest.mark.slow
def test_directory_is_complete_and_its_manifest_true(exports) -> None:
    directory, parity = exports["baichuan2-alibi"]
    manifest = read_manifest(directory, "hf_model")
    verify_files(directory, manifest)
    assert set(manifest["files"]) | {"manifest.json"} == {path.name for path in directory.iterdir()}
    promised = {"config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json", "README.md"}
    promised |= {"model.safetensors", "model.safetensors.index.json"}
    assert promised <= set(manifest["files"])
    assert manifest["parity"] == parity.to_dict()
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "Medical disclaimer" in card and f"{parity.max_logit_difference:.2e}" in card
    assert "accepted up to 0.0001 × max(1, largest logit)" in card
    config = json.loads((directory / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_baichuan.BaichuanForCausalLM"


@pytest.mark.slow
def test_bf16_export_is_compared_with_the_rounded_weights(checkpoints, tmp_path: Path) -> None:
    parity = export_checkpoint(checkpoints["llama"], tmp_path / "out", dtype="bfloat16")
    assert parity.max_logit_difference < 1e-4
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    folded = export_checkpoint(checkpoints["baichuan2-rope"], tmp_path / "folded", dtype="bfloat16", llamafy=True)
    assert 0 < folded.max_logit_difference < 2**-7 * folded.max_logit
    folded = export_checkpoint(checkpoints["baichuan2-rope"], tmp_path / "half", dtype="float16", llamafy=True)
    assert 0 < folded.max_logit_difference < folded.tolerance * folded.max_logit == 2**-10 * folded.max_logit


@pytest.fixture
def base(checkpoints, tmp_path: Path) -> Path:
    """The Llama base model as it would be published: with settings of its own, and generation that samples."""
    directory = Path(shutil.copytree(checkpoints["llama"].parent / "hf", tmp_path / "base"))
    generation = {"bos_token_id": 1, "eos_token_id": [2, 7], "do_sample": True, "top_p": 0.8, "repetition_penalty": 1.2}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    settings = {"tokenizer_class": "RemoteTokenizer", "auto_map": {"AutoTokenizer": "x.y"}, "model_max_length": 77}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def _check_settings_of_the_base(out: Path, base: Path) -> None:
    assert json.loads((out / "generation_config.json").read_text()) == json.loads(
        (base / "generation_config.json").read_text()
    )
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 77
    assert settings["tokenizer_class"] == "LlamaTokenizer" and "auto_map" not in settings


def test_settings_of_the_base_model_are_copied_along(checkpoints, base: Path, tmp_path: Path) -> None:
    parity = export_checkpoint(checkpoints["llama"], tmp_path / "named", base_hf=base)
    assert parity.continuation_tokens == 16  # greedy, though the settings ask for sampling and a penalty
    _check_settings_of_the_base(tmp_path / "named", base)
    import_hf(base, tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "carried", skip_verification=True)
    _check_settings_of_the_base(tmp_path / "carried", base)


def test_end_of_training_is_an_end_of_generation(checkpoints, base: Path, tmp_path: Path) -> None:
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "top_k": 5}))
    export_checkpoint(checkpoints["llama"], tmp_path / "out", base_hf=base, skip_verification=True)
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == {"eos_token_id": 2, "top_k": 5}


def test_another_base_model_is_refused(checkpoints, base: Path, tmp_path: Path) -> None:
    with open(base / "tokenizer.model", "ab") as handle:
        handle.write(b"x")
    with pytest.raises(DataError, match=r"wrong base model: .*tokenizer\.model is not the tokenizer"):
        export_checkpoint(checkpoints["llama"], tmp_path / "out", base_hf=base)


def test_mismatch_is_refused_and_nothing_published(checkpoints, tmp_path: Path, monkeypatch) -> None:
    written = publish.config_json
    monkeypatch.setattr(publish, "config_json", lambda *a: {**written(*a), "rms_norm_eps": 0.01})
    with pytest.raises(IntegrityError, match=r"logits differ: got .* at most, need"):
        export_checkpoint(checkpoints["llama"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert export_checkpoint(checkpoints["llama"], tmp_path / "out", skip_verification=True) is None
    assert "Not verified" in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture
def copy(exports, tmp_path: Path) -> Path:
    """A private copy of the Llama export."""
    return Path(shutil.copytree(exports["llama"][0], tmp_path / "copy"))


def test_one_changed_weight_is_named(checkpoints, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][7, 3] += 1e-6
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(
        IntegrityError, match=r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' differs from the checkpoint"
    ):
        verify_export(checkpoints["llama"], copy)


@pytest.mark.slow
def test_other_token_ids_are_refused_unless_told_otherwise(checkpoints, copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "add_prefix_space": True}))
    with pytest.raises(IntegrityError, match=r"tokenizer differs from the index: .* --allow-token-mismatch"):
        verify_export(checkpoints["llama"], copy)
    parity = verify_export(checkpoints["llama"], copy, allow_token_mismatch=True)
    assert (parity.tokenizer_texts, parity.tokenizer_mismatches) == (0, 8)
    path.write_text(json.dumps({**settings, "chat_template": "{{ messages[0]['content'] }}"}))
    with pytest.raises(IntegrityError, match="chat template gives other ids than training saw"):
        verify_export(checkpoints["llama"], copy)
    parity = verify_export(checkpoints["llama"], copy, allow_token_mismatch=True)
    assert (parity.tokenizer_texts, parity.tokenizer_mismatches) == (4, 4), "what was equal is still said to be"
    assert "of 4 texts and conversations equal to those of training, of 4 not (accepted)" in _parity_text(parity)


@pytest.mark.parametrize("damage", ["bit flip", "truncated", "missing"])
def test_damaged_checkpoint_is_refused(checkpoints, tmp_path: Path, damage: str) -> None:
    copied = Path(shutil.copytree(checkpoints["llama"], tmp_path / "checkpoint"))
    shard = resolve_checkpoint(copied) / "state" / "output_layer.weight.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "bit flip" else content[:-1000])
    with pytest.raises(IntegrityError, match=r"damaged or missing: .*output_layer\.weight\.distcp"):
        export_checkpoint(copied, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


class _Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_malicious_metadata_is_not_executed(checkpoints, tmp_path: Path) -> None:
    """An attacker who rewrites the manifest too is stopped by the unpickler."""
    from megatron_huatuo.storage.manifest import describe_files, sealed

    copied = resolve_checkpoint(shutil.copytree(checkpoints["llama"], tmp_path / "checkpoint"))
    (copied / "state" / ".metadata").write_bytes(pickle.dumps(_Harm(tmp_path / "harm")))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"] |= describe_files(copied, ["state/.metadata"])
    (copied / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(IntegrityError, match=r"would execute code or is damaged.*\.metadata"):
        export_checkpoint(copied, tmp_path / "out")
    assert not (tmp_path / "harm").exists()


def test_wrong_requests_are_refused(checkpoints, exports, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--llamafy needs Baichuan2 with rotary positions"):
        export_checkpoint(checkpoints["baichuan2-alibi"], tmp_path / "out", llamafy=True)
    with pytest.raises(ConfigError, match="wrong dtype: got 'int8', need one of"):
        export_checkpoint(checkpoints["llama"], tmp_path / "out", dtype="int8")
    with pytest.raises(IntegrityError, match="no complete checkpoint"):
        export_checkpoint(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="output directory exists already"):
        export_checkpoint(checkpoints["llama"], exports["llama"][0], skip_verification=True)


@pytest.mark.slow
def test_the_tool_imports_exports_and_verifies(checkpoints, exports, tmp_path: Path) -> None:
    run = functools.partial(run_tool, "convert_checkpoint")
    hf = checkpoints["qwen2"].parent / "hf"
    assert run("import", "--hf", str(hf), "--checkpoint", str(tmp_path / "ck")).returncode == 0
    done = run("export", "--checkpoint", str(tmp_path / "ck"), "--hf", str(tmp_path / "out"), "--dtype", "float32")
    assert done.returncode == 0 and "max_logit_difference" in done.stdout, done.stderr[-2000:]
    assert "writing weights" in done.stderr and "Loading weights" not in done.stderr, "no bar of another library"
    done = run("export", "--checkpoint", str(tmp_path / "ck"), "--hf", str(tmp_path / "quick"), "--skip-verification")
    assert done.returncode == 0 and done.stdout == f"model: {tmp_path / 'quick'} (not verified)\n", done.stderr[-2000:]
    failed = run("verify", "--checkpoint", str(tmp_path / "ck"), "--hf", str(exports["llama"][0]))
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("error: "), failed.stderr[-2000:]


def test_an_error_ends_the_hashing_of_the_checkpoint(checkpoints, tmp_path: Path, monkeypatch) -> None:
    """A gigabyte of hashing would hold up Ctrl-C by a second, a whole model's by minutes."""
    from megatron_huatuo.checkpoint import integrity

    begun, given_up = threading.Event(), []
    hashing = integrity.sha256_file

    def slow(path: Path, cancelled: threading.Event) -> str:
        begun.set()
        given_up.append(cancelled.wait(60))
        return hashing(path, cancelled)

    def interrupted(*_: Any) -> None:
        begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(integrity, "sha256_file", slow)
    monkeypatch.setattr(publish, "write_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoints["llama"], tmp_path / "out")
    assert given_up and all(given_up), "told to stop, not waited for"
    with pytest.raises(InterruptedError, match=r"hashing was given up: .*distcp"):
        cancelled = threading.Event()
        cancelled.set()
        hashing(next(resolve_checkpoint(checkpoints["llama"]).glob("state/*.distcp")), cancelled)
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_that_is_not_there_is_named(checkpoints, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no base model: .*nowhere is not a directory"):
        export_checkpoint(checkpoints["llama"], tmp_path / "out", base_hf=tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "baichuan2-rope"])
def test_the_published_model_equals_its_import(checkpoints, tmp_path: Path, name: str, caplog) -> None:
    """Its chat template is another and its tokenizer class remote code: token ids are left out, with a word."""
    published = Path(shutil.copytree(checkpoints[name].parent / "hf", tmp_path / "published"))
    settings = {"tokenizer_class": "BaichuanTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}
    for content in (None, settings, {"eos_token": "</s>", "chat_template": "{{ messages }}"}):
        if content is not None:
            (published / "tokenizer_config.json").write_text(json.dumps(content))
        caplog.clear()
        parity = verify_export(checkpoints[name], published)
        assert (parity.tokenizer_texts, parity.continuation_tokens) == (0, 16)
        assert "token ids are not compared" in caplog.text


def test_another_continuation_is_refused(checkpoints, exports, monkeypatch) -> None:
    from megatron_huatuo.convert import verify

    run = verify.run_transformers

    def changed(*arguments: Any) -> Any:
        found = run(*arguments)
        found.continuations[1][9] = (found.continuations[1][9] + 1) % FAMILIES["llama"].vocab_size
        return found

    monkeypatch.setattr(verify, "run_transformers", changed)
    with pytest.raises(IntegrityError, match="greedy continuation differs: transformers gives"):
        verify_export(checkpoints["llama"], exports["llama"][0])


def test_models_beyond_the_memory_are_refused_before_any_work(checkpoints, exports, tmp_path, monkeypatch) -> None:
    from megatron_huatuo.convert import run_models

    available = type("Memory", (), {"available": 1_000_000})
    monkeypatch.setattr(run_models.psutil, "virtual_memory", lambda: available)
    monkeypatch.setattr(publish, "write_weights", lambda *_: pytest.fail("weights were written"))
    too_little = r"not enough memory to compare .* got 0\.0 GB, need .* GB\. .*--skip-verification"
    with pytest.raises(ConfigError, match=too_little):
        export_checkpoint(checkpoints["llama"], tmp_path / "out")
    with pytest.raises(ConfigError, match=too_little):
        verify_export(checkpoints["llama"], exports["llama"][0])


def test_token_ids_are_compared_before_weights_are_written(checkpoints, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(publish, "write_weights", lambda *_: pytest.fail("weights were written"))
    monkeypatch.setattr("megatron_huatuo.convert.tokenizer_files.CHAT_TEMPLATE", "{{ 'x' }}")
    with pytest.raises(IntegrityError, match=rf"chat template gives other ids .*\({tmp_path / 'out'}\)"):
        export_checkpoint(checkpoints["llama"], tmp_path / "out")


def test_a_folded_head_has_rows_of_unit_length() -> None:
    from megatron_huatuo.convert.llamafy import fold_head

    head = torch.randn(64, 8).bfloat16()
    folded = [rows for _, rows in fold_head([("lm_head.weight", head[:32]), ("lm_head.weight", head[32:])])]
    assert torch.equal(torch.cat(folded), torch.nn.functional.normalize(head.float()))
    assert folded[0].dtype == torch.float32
