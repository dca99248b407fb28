"""The start of a run over a large blend is measured on real runs, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KEYS = {"name", "ours", "peer", "peer_name", "ratio", "unit", "runs", "machine", "versions", "command"}


@pytest.mark.slow
def test_first_step_is_timed_from_the_imports_on_with_hashing_and_without(tmp_path: Path) -> None:
    options = {"documents": 2000, "ranks": 1, "repeats": 1, "directory": tmp_path, "json": tmp_path / "records.json"}
    command = [sys.executable, ROOT / "tools" / "benchmark.py", "start", *(f"--{k}={v}" for k, v in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    records = json.loads((tmp_path / "records.json").read_text())
    assert [record["name"].split(", ")[-1] for record in records] == ["every byte hashed", "data.verify_hashes=false"]
    for record in records:
        assert set(record) == KEYS
        [timing] = record["runs"]["ours"]
        assert record["ours"] == timing["start_s"] > timing["step_s"] > 0 and timing["launch_s"] > 0
        assert record["ratio"] == record["ours"] / 10
    assert [path.name for path in tmp_path.iterdir()] == ["records.json"]
