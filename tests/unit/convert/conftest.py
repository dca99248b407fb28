"""Fixtures shared with tests/unit/models, and a checkpoint of every family with the demo's kind of tokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from tests.unit.convert.small_models import SMALL, write_model

FAMILIES = {name: dataclasses.replace(SMALL[name], vocab_size=448) for name in SMALL}


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["高血压患者应当低盐饮食。" * 3, "Drink water and rest." * 3, "感冒多休息，多喝水。" * 3]
    records = [{"id": str(i), "source": "s", "language": "zh", "text": text} for i, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    train_tokenizer([folder / "texts.jsonl"], folder / "tokenizer", 420)
    return folder / "tokenizer"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> dict[str, Path]:
    """{family: directory that holds iter_0000000}."""
    root = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name, architecture in FAMILIES.items():
        directory = write_model(root / name / "hf", architecture)
        (directory / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
        import_hf(directory, root / name / "checkpoint")
        found[name] = root / name / "checkpoint"
    return found
