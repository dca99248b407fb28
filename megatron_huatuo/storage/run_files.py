"""Files of a training run that others read: their names, and one reader for each.

    RUN/config.yaml  status.json  log.jsonl  starts.jsonl  tensorboard/
       /STOP                                            put there by a person or a script, polled after every step
       /checkpoints/latest                              number of the newest one, for people and scripts
                   /iter_0000100/manifest.json          written last: sizes and sha256 of everything below
                                /state/                 weights and optimizer, megatron-core's distributed format
                                /training.json          iteration, consumed_train_samples, fingerprints, layout
                                /architecture.json  /config.yaml  /tokenizer/

Invariant: a directory is a checkpoint if its name is iter_NNNNNNN and it holds a manifest; `latest` alone is never
trusted. Unfinished ones are hidden (`.iter_….tmp`), damaged ones are renamed (`damaged_iter_…`); neither is ever loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.storage.manifest import MANIFEST_NAME, read_json

CONFIG, STATUS, LOG, STARTS, TENSORBOARD = "config.yaml", "status.json", "log.jsonl", "starts.jsonl", "tensorboard"
STOP = "STOP"
CHECKPOINTS, LATEST = "checkpoints", "latest"
CHECKPOINT_KIND = "checkpoint"
STATE, TRAINING, ARCHITECTURE, TOKENIZER = "state", "training.json", "architecture.json", "tokenizer"
_CHECKPOINT_NAME = re.compile(r"iter_(\d{7,})$")


def is_run(directory: Path) -> bool:
    """Whether a directory has what every run has."""
    return (directory / LOG).is_file() or (directory / STATUS).is_file() or (directory / CHECKPOINTS).is_dir()


def read_run_config(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that a run resolved. Raises: ConfigError naming the file when there is none, or it is not a mapping."""
    path = Path(run_dir) / CONFIG
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no training run: {path} cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration is not YAML: {path} ({error}). Restore it.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"configuration is not a mapping: got {type(content).__name__} ({path}). Restore it.")
    return content


def blend_of_run(run_dir: str | os.PathLike[str]) -> Path:
    """Blend directory that a run trains on. Raises: ConfigError when its settings name none."""
    blend = read_run_config(run_dir).get("data", {}).get("blend")
    if not isinstance(blend, str) or not blend:
        raise ConfigError(f"configuration names no blend: need data.blend ({Path(run_dir) / CONFIG})")
    return Path(blend)


def read_log(run_dir: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Entries of log.jsonl, oldest first; a line that is torn, or just being written, is left out. No file has none."""
    yield from _read_entries(Path(run_dir) / LOG)


def read_starts(run_dir: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Entries of starts.jsonl, one for every start of the run, oldest first."""
    yield from _read_entries(Path(run_dir) / STARTS)


def _read_entries(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with open(path, "rb") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def iteration_name(iteration: int) -> str:
    """iter_0000100 for 100."""
    return f"iter_{iteration:07d}"


def iteration_of(directory: Path) -> int:
    """Iteration of a checkpoint directory's name. Raises IntegrityError for another name."""
    found = _CHECKPOINT_NAME.match(directory.name)
    if not found:
        raise IntegrityError(f"no checkpoint directory: {directory}, need a name like iter_0000100. Check the path.")
    return int(found.group(1))


def complete_checkpoints(checkpoints: str | os.PathLike[str]) -> list[Path]:
    """Directories of complete checkpoints, newest first. An absent folder has none."""
    found = [path for path in _named_checkpoints(checkpoints) if (path / MANIFEST_NAME).is_file()]
    return sorted(found, key=iteration_of, reverse=True)


def torn_checkpoints(checkpoints: str | os.PathLike[str]) -> list[Path]:
    """What an interrupted save left behind."""
    hidden = Path(checkpoints).glob(".iter_*.tmp")
    return sorted(
        [*hidden, *(path for path in _named_checkpoints(checkpoints) if not (path / MANIFEST_NAME).is_file())]
    )


def _named_checkpoints(checkpoints: str | os.PathLike[str]) -> list[Path]:
    root = Path(checkpoints)
    return [path for path in root.iterdir() if _CHECKPOINT_NAME.match(path.name)] if root.is_dir() else []


def resolve_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The newest complete checkpoint of a run directory, of its checkpoints/, or `path` itself when it is one.

    Raises: IntegrityError when there is none.
    """
    root = Path(path)
    if _CHECKPOINT_NAME.match(root.name) and (root / MANIFEST_NAME).is_file():
        return root
    for folder in (root / CHECKPOINTS, root):
        if found := complete_checkpoints(folder):
            return found[0]
    raise IntegrityError(
        f"no complete checkpoint in {path}: need a run directory, its checkpoints/ or one iter_NNNNNNN. Check the path."
    )


def read_training_state(checkpoint: Path) -> dict[str, Any]:
    """training.json: iteration, consumed_train_samples, fingerprints, what decided the loss curve, layout."""
    return dict(read_json(checkpoint / TRAINING))
