"""A training run as text for a person: how it stands, its last logged step, its checkpoints. Does not load torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_huatuo.checkpoint.layout import complete_checkpoints, torn_checkpoints
from megatron_huatuo.inspect.show_manifest import describe_values
from megatron_huatuo.storage.manifest import read_json


def describe_run(run_dir: Path) -> list[str]:
    """status.json, the last lines of log.jsonl and starts.jsonl, checkpoints and settings."""
    lines = [f"run {run_dir}"]
    if (run_dir / "status.json").is_file():
        lines += describe_values(read_json(run_dir / "status.json"))
    last = _last_entry(run_dir / "log.jsonl")
    if last is not None:
        lines += ["[last logged step]", *describe_values(last)]
    start = _last_entry(run_dir / "starts.jsonl")
    if start is not None:
        lines += ["[last start]", *describe_values(start)]
    lines += ["[checkpoints]"]
    lines += [f"  {path.name}" for path in complete_checkpoints(run_dir / "checkpoints")] or ["  none"]
    lines += [f"  unfinished: {path.name}" for path in torn_checkpoints(run_dir / "checkpoints")]
    if (run_dir / "config.yaml").is_file():
        lines += ["[config.yaml]", *(run_dir / "config.yaml").read_text(encoding="utf-8").splitlines()]
    return lines


def _last_entry(path: Path) -> dict[str, Any] | None:
    """The last whole line; a run that is writing may have half of one behind it."""
    if not path.is_file():
        return None
    for line in reversed(path.read_bytes().splitlines()):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            continue
    return None
