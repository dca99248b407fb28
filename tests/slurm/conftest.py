"""One Slurm and one data set for all tests of this folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing_packages, running_cluster

ROOT = Path(__file__).parents[2]

# What ends a run of the tests from outside, such as a time limit of CI, leaves no daemons and no jobs: as Ctrl-C does.
signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster of two nodes."""
    if missing := missing_packages():
        pytest.skip(f"a real Slurm needs Debian packages: apt-get install {' '.join(missing)}")
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def long_blend(sample_blend: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty passes over the sample's sources: more steps than any test takes."""
    folder = tmp_path_factory.mktemp("long_blend")
    sources = [
        {"name": name, "path_prefix": str(sample_blend.parent / "index" / name), "level": level, "epochs": 60}
        for level, name in enumerate(("sft", "books", "web"))
    ]
    content = {"seq_length": 256, "seed": 5, "packing": {"window": 16}, "sources": sources}
    (folder / "blend.yaml").write_text(json.dumps(content))  # JSON is YAML
    command = [sys.executable, ROOT / "tools" / "build_blend.py", "--config", folder / "blend.yaml"]
    subprocess.run([*command, "--output", folder / "blend"], check=True, capture_output=True, timeout=120)
    return folder / "blend"
