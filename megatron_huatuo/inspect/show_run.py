"""A training run as text for a person: how it stands, its last logged step, its checkpoints. Does not load torch."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from megatron_huatuo.inspect.show_manifest import describe_values
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.storage.run_files import (
    CHECKPOINTS,
    CONFIG,
    STATUS,
    complete_checkpoints,
    read_log,
    read_starts,
    torn_checkpoints,
)


def describe_run(run_dir: Path) -> list[str]:
    """status.json, the last lines of log.jsonl and starts.jsonl, checkpoints and settings."""
    lines = [f"run {run_dir}"]
    if (run_dir / STATUS).is_file():
        lines += describe_values(read_json(run_dir / STATUS))
    for last in deque(read_log(run_dir), maxlen=1):
        lines += ["[last logged step]", *describe_values(last)]
    for start in deque(read_starts(run_dir), maxlen=1):
        lines += ["[last start]", *describe_values(start)]
    lines += ["[checkpoints]"]
    lines += [f"  {path.name}" for path in complete_checkpoints(run_dir / CHECKPOINTS)] or ["  none"]
    lines += [f"  unfinished: {path.name}" for path in torn_checkpoints(run_dir / CHECKPOINTS)]
    if (run_dir / CONFIG).is_file():
        lines += ["[config.yaml]", *(run_dir / CONFIG).read_text(encoding="utf-8").splitlines()]
    return lines
