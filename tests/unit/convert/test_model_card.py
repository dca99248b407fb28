"""The model card as the Hub's own parser reads it: where the model comes from, and what exams it has sat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from megatron_huatuo.convert.card_metadata import CardFacts
from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.convert.model_card import rewrite_card
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import GenerationSettings
from megatron_huatuo.storage.manifest import read_manifest, verify_files
from tests.tool_process import run_tool
from tests.unit.convert.conftest import FAMILIES
from tests.unit.convert.small_models import write_model

ROOT = Path(__file__).parents[3]
_BASE_CARD = """---
license: other
license_name: base-license
license_link: https://example.org/LICENSE
language:
- zh
- en
tags: [base]
---
# The base model
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> dict[str, Path]:
    """{family: checkpoint}, of two families; the directory that it was imported from lies beside it."""
    root = tmp_path_factory.mktemp("trained")
    for name in ("llama", "qwen2"):
        directory = write_model(root / name / "hf", FAMILIES[name])
        (directory / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
        import_hf(directory, root / name / "checkpoint")
    return {name: root / name / "checkpoint" for name in ("llama", "qwen2")}


@pytest.fixture
def base(trained, tmp_path: Path) -> Path:
    """The base model as huggingface_hub stores a download: folders named after it, files as links."""
    directory = tmp_path / "hub" / "models--some-org--Base-7B" / "snapshots" / "0123abcd"
    directory.mkdir(parents=True)
    for path in (trained["llama"].parent / "hf").iterdir():
        (directory / path.name).symlink_to(path)
    (directory / "README.md").write_text(_BASE_CARD, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exam") / "exam.jsonl"
    options = {"A": "多休息", "B": "多喝水", "C": "低盐饮食"}
    lines = [{"id": f"q{k}", "question": f"感冒{k}？", "option": options, "answer": "ABC"[k % 3]} for k in range(6)]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return path


def _sit(model: Path, exam: Path, output: Path) -> dict:
    settings = ExamSettings(scoring="loglikelihood")
    return run_exam(model, [exam], output, settings, GenerationSettings(device="cpu"))


def test_card_says_what_the_base_says_and_what_the_exporter_adds(trained, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "Our-Model"
    export_checkpoint(
        trained["llama"], out, base_hf=base, skip_verification=True, card=CardFacts(datasets=("org/pairs",))
    )
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict() == {
        "base_model": "some-org/Base-7B",
        "license": "other",
        "license_name": "base-license",
        "license_link": "https://example.org/LICENSE",
        "language": ["zh", "en"],
        "datasets": ["org/pairs"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["medical", "megatron_huatuo"],
    }
    for promised in ("# Medical language model", "Medical disclaimer", "Parity with the training checkpoint"):
        assert promised in card.text


def test_without_a_base_nothing_is_guessed(trained, tmp_path: Path, caplog) -> None:
    export_checkpoint(trained["llama"], tmp_path / "out", skip_verification=True)
    assert set(ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()) == {
        *("library_name", "pipeline_tag", "tags")
    }
    assert "the model card names no license" in caplog.text
    with pytest.raises(ConfigError, match=r"wrong name on the Hub: got 'pairs', need ORG/NAME"):
        CardFacts(datasets=("pairs",))


@pytest.mark.slow
def test_scores_of_the_models_own_exam_become_its_model_index(trained, base, exam, tmp_path: Path) -> None:
    out = tmp_path / "Our-Model"
    export_checkpoint(trained["llama"], out, base_hf=base, skip_verification=True)
    scores = _sit(out, exam, tmp_path / "exam")
    facts = ["--evaluation", tmp_path / "exam", "--license", "apache-2.0", "--language", "zh"]
    done = run_tool("convert_checkpoint", "card", "--hf", out, *facts)
    assert done.returncode == 0, done.stderr
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.language, card.data.base_model) == ("apache-2.0", ["zh"], "some-org/Base-7B")
    assert card.data.model_name == "Our-Model"
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("own", "accuracy", scores["accuracy"])
    assert result.metric_args == {"interval": scores["interval"], "chance": scores["chance"], "count": 6}
    assert f"| own | loglikelihood | 6 | {scores['accuracy']:.1%} |" in card.text
    manifest = read_manifest(out, "hf_model")
    verify_files(out, manifest)
    assert manifest["card"]["license"] == "apache-2.0"
    _sit(out, exam, tmp_path / "exam")  # the card is no part of what an exam knows a model by


def test_scores_of_another_model_and_unfinished_exams_are_refused(trained, exam, tmp_path: Path) -> None:
    for family, name in (("llama", "ours"), ("qwen2", "other")):
        export_checkpoint(trained[family], tmp_path / name, skip_verification=True)
    _sit(tmp_path / "other", exam, tmp_path / "exam")
    before = (tmp_path / "ours" / "README.md").read_bytes()
    with pytest.raises(DataError, match=r"exam of another model: .* was sat by .*other' with fingerprint"):
        rewrite_card(tmp_path / "ours", [tmp_path / "exam"])
    (tmp_path / "exam" / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="file is missing"):
        rewrite_card(tmp_path / "other", [tmp_path / "exam"])
    assert (tmp_path / "ours" / "README.md").read_bytes() == before
