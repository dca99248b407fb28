"""A recorded curve of 50 steps: exact on the CPU capability that it was recorded on, within 1e-4 elsewhere.

It moves only when the numerics of data loading, model, optimizer or schedule do. When that is meant, record it anew:

    GOLDEN_RECORD=1 python -m pytest tests/numerics/test_golden_curve.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from tests.distributed.engine import make_config, read_log, train_rank
from tests.distributed.runner import run_ranks

GOLDEN = Path(__file__).parent / "golden" / "fifty_steps.json"
STEPS, EOS = 50, 2


def write_documents(prefix: Path, seed: int) -> None:
    """An index of 130 documents of two turns at most: a sequence that a rule makes from its first token."""
    with IndexedWriter(prefix, 2048) as writer:
        for number in range(130):
            lengths = [5 + (seed * number) % 11, 20 + (7 * number) % 40]
            if number % 3 == 0:
                lengths += [4 + number % 5, 15 + number % 17]
            start = 3 + (31 * seed + 17 * number) % 400
            tokens = (3 + (start + (11 + seed) * np.arange(sum(lengths))) % 500).astype(np.int32)
            tokens[-1] = EOS
            modes = np.tile(np.array([0, 1], np.int8), len(lengths) // 2)
            writer.add_documents(tokens, np.array(lengths, np.int64), modes, np.array([len(lengths)], np.int64))
        entry = {"sha256": "0" * 64, "vocab_size": 2048, "eos_id": EOS, "path": ""}
        writer.finish({"tokenizer": entry})


@pytest.fixture
def blend(tmp_path: Path) -> Path:
    sources = []
    for level, name in enumerate(("late", "early"), start=1):
        write_documents(tmp_path / "index" / name, level)
        sources.append({"name": name, "path_prefix": str(tmp_path / "index" / name), "level": level})
    content = {"seq_length": 128, "seed": 3, "packing": {"window": 8}, "sources": sources}
    return build_blend(parse_blend_config(content, "golden"), tmp_path / "blend")


def curve_of(run_dir: Path, blend: Path, model: Path) -> list[dict[str, float]]:
    config = make_config(
        run_dir,
        blend,
        model={"preset": None, "hf": str(model)},
        training={"train_iters": STEPS, "global_batch_size": 2, "micro_batch_size": 2},
        optimizer={"lr": 3e-3},
        schedule={"warmup_fraction": 0.1, "decay_iters": STEPS},
    )
    run_ranks(1, _train_without_last_save, config)
    return [{key: line[key] for key in ("lm_loss", "grad_norm")} for line in read_log(run_dir)]


def _train_without_last_save(config) -> None:
    """The index has no tokenizer files to put into a checkpoint."""
    from megatron_huatuo.train.saving import Saver

    Saver.save_last = lambda self: None
    train_rank(config)


def test_the_curve_is_the_recorded_one(tmp_path: Path, blend: Path, small_model: Path) -> None:
    curve = curve_of(tmp_path / "run", blend, small_model)
    here = {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__.split("+")[0]}
    if os.environ.get("GOLDEN_RECORD"):
        GOLDEN.write_text(json.dumps({**here, "curve": curve}, indent=1) + "\n", "utf-8")
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert len(curve) == STEPS and curve[-1]["lm_loss"] < curve[0]["lm_loss"] - 2, "the recorded run learns"
    if {key: golden[key] for key in here} == here:
        assert curve == golden["curve"]
    for step, (got, want) in enumerate(zip(curve, golden["curve"], strict=True), start=1):
        assert got["lm_loss"] == pytest.approx(want["lm_loss"], abs=1e-4), f"step {step}"
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-2), f"step {step}"
