"""What is compared: sizes, arms, data. Everything here is the same for all seeds and arms but what an arm names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.blend.learning_rate import ScheduleConfig
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.unify import unify

DATA = Path(__file__).resolve().parent / "data"
CORPUS = {"web": 32.0, "literature": 16.0, "encyclopedia": 8.0, "books": 4.0}
"""Sources and their priorities, the recipe's."""
SOURCES = (*CORPUS, "sft")
SINGLE_CHOICE = ("最佳选择题", "single choice")


@dataclass(frozen=True)
class Size:
    """One scale of the experiment."""

    preset: str | None
    """Architecture; None: that of the base model's directory."""
    english_only: bool
    seq_length: int
    global_batch_size: int
    peak_lr: float
    corpus_epochs: float
    sft_epochs: float
    base_epochs: float
    """Of the general text that a base of the preset is trained on first."""
    seeds: int


SIZES = {
    "toy": Size("toy", False, 256, 4, 2e-3, 4, 8, 10, 5),
    "smollm2": Size(None, True, 512, 2, 1e-4, 1, 2, 0, 3),
}


@dataclass(frozen=True)
class Stage:
    """One training run of an arm: which blend, by which schedule."""

    blend: str
    schedule: ScheduleConfig
    averaged: int = 1
    """Newest checkpoints whose weights are averaged at its end."""


@dataclass(frozen=True)
class Arm:
    """One way to adapt the base."""

    name: str
    what: str
    stages: tuple[Stage, ...]


def _cosine(passes: float) -> ScheduleConfig:
    return ScheduleConfig(style="cosine", decay_passes=passes, warmup_fraction=0.03)


_CONSTANT = ScheduleConfig(style="constant", warmup_fraction=0.03)
REFERENCE = "two stages"
ARMS = (
    Arm("one stage, recipe", "priorities, cosine over 1.35 passes", (Stage("priority", _cosine(1.35)),)),
    Arm("one stage, to zero", "priorities, cosine to zero with the last row", (Stage("priority", _cosine(1.0)),)),
    Arm("one stage, averaged", "priorities, constant rate, last five checkpoints averaged",
        (Stage("priority", _CONSTANT, averaged=5),)),
    Arm("one stage, uniform", "equal priorities, cosine over 1.35 passes", (Stage("uniform", _cosine(1.35)),)),
    Arm(REFERENCE, "corpus, then fine-tuning data, each with its own warm-up and cosine to zero",
        (Stage("corpus", _cosine(1.0)), Stage("sft", _cosine(1.0)))),
)  # fmt: skip


def blend_sources(kind: str, size: Size, index: Path) -> list[dict[str, Any]]:
    """Sources of a blend of ARMS, each document as often in all of them together as in every other arm."""

    def source(name: str, priority: float) -> dict[str, Any]:
        epochs = size.sft_epochs if name == "sft" else size.corpus_epochs
        return {"name": name, "path_prefix": str(index / f"{name}_train"), "priority": priority, "epochs": epochs}

    if kind == "priority":
        return [source(name, {**CORPUS, "sft": 1.0}[name]) for name in SOURCES]
    names = {"uniform": SOURCES, "corpus": tuple(CORPUS), "sft": ("sft",)}[kind]
    return [source(name, 1.0) for name in names]


def prepare_data(work: Path, size: Size, tokenizer: Path | None) -> Path:
    """Pairs, tokenizer and indexes of every source, trained and held out; the directory of the tokenizer.

    tokenizer: of the base model; None: one is trained on all texts.
    """
    pairs = work / "pairs"
    for split in ("train", "heldout"):
        for name in (*CORPUS, "general", "sft"):
            _write_lines(pairs / f"{name}_{split}.jsonl", _records(name, split, size.english_only))
        for name in (*CORPUS, "general"):
            unify([pairs / f"{name}_{split}.jsonl"], pairs / f"{name}_{split}", backend="template")
    if tokenizer is None:
        tokenizer = work / "index" / "tokenizer"
        if not tokenizer.is_dir():
            train_tokenizer([_pairs_of(pairs, name, split) for name, split in _parts()], tokenizer, 3072)
    for name, split in _parts():
        prefix = work / "index" / f"{name}_{split}"
        if not Path(f"{prefix}.json").is_file():
            build_index([_pairs_of(pairs, name, split)], prefix, tokenizer, workers=1, source=None)
    return tokenizer


def _parts() -> list[tuple[str, str]]:
    return [(name, split) for name in (*SOURCES, "general") for split in ("train", "heldout")]


def _pairs_of(pairs: Path, name: str, split: str) -> Path:
    whole = pairs / f"{name}_{split}"
    return pairs / f"{name}_{split}.jsonl" if name == "sft" else whole / "conversations.jsonl"


def _records(name: str, split: str, english_only: bool) -> Iterable[dict[str, Any]]:
    for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        marked = record.get("metadata") or record.get("provenance") or {}
        if marked.get("split") == split and (not english_only or "-en-" in record["id"]):
            yield record


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def write_exam(path: Path, size: Size) -> Path:
    """The single-choice questions of the sample, of the languages that are trained on."""
    lines = (DATA / "exam.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    kept = [question for question in questions if question["question_type"] in SINGLE_CHOICE]
    _write_lines(path, (question for question in kept if not size.english_only or question["language"] == "en"))
    return path


def draw_blend(work: Path, size: Size, kind: str, seed: int) -> Path:
    """The blend of one kind and seed."""
    config = {
        "seq_length": size.seq_length,
        "seed": seed,
        "packing": {"window": 16},
        "sources": blend_sources(kind, size, work / "index"),
    }
    return build_blend(parse_blend_config(config, kind), work / "blends" / f"{kind}_{seed}")


def draw_base_blend(work: Path, size: Size) -> Path:
    """General text alone, for a base that is trained here."""
    prefix = str(work / "index" / "general_train")
    source = {"name": "general", "path_prefix": prefix, "priority": 1.0, "epochs": size.base_epochs}
    config = {"seq_length": size.seq_length, "seed": 1, "sources": [source]}
    return build_blend(parse_blend_config(config, "base"), work / "blends" / "base")


def quietly(action: Callable[[], Any], log: Path) -> Any:
    """Run something with stdout and stderr in a file, those of libraries included."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as handle:
        for number in (1, 2):
            os.dup2(handle.fileno(), number)
        return action()
