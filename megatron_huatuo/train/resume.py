"""Where a run begins: at its newest sound checkpoint, if data and settings are those that it was written with.

Invariant: nothing of the run directory is changed, and no weight is loaded, before the checkpoint has been accepted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_huatuo.checkpoint.layout import latest_disagrees, published_but_torn
from megatron_huatuo.checkpoint.store import newest_sound_checkpoint
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.storage.run_files import CHECKPOINTS, LATEST, read_training_state
from megatron_huatuo.train.train_config import TrainConfig


def fingerprints(config: TrainConfig, architecture: Architecture, rows: PackedRows) -> dict[str, str]:
    """What a resumed run must find unchanged: sha256 of blend, tokenizer and decisive settings."""
    return {
        "blend": rows.fingerprint,
        "tokenizer": rows.tokenizer["sha256"],
        "config": config.fingerprint(architecture),
    }


def find_checkpoint(
    config: TrainConfig, architecture: Architecture, rows: PackedRows
) -> tuple[Path, dict[str, Any]] | None:
    """(directory, training.json) of the checkpoint to resume from, agreed by all ranks; None for a new run.

    Raises: IntegrityError when the run has had checkpoints and none is left that is sound; ConfigError with both
    fingerprints when data or settings changed.
    """
    log, is_first = get_logger(__name__), dist.get_rank() == 0
    checkpoints = Path(config.run_dir) / CHECKPOINTS
    directory = newest_sound_checkpoint(checkpoints, lambda text: log.warning(text) if is_first else None)
    if directory is None:
        _refuse_to_begin_again(checkpoints)
        return None
    said = latest_disagrees(checkpoints, directory) if is_first else None
    if said is not None:
        log.warning("checkpoints/latest says %s; using %s, the newest that is complete and sound", said, directory.name)
    state = read_training_state(directory)
    _refuse_changes(
        config, fingerprints(config, architecture, rows), state, rows.manifest, directory, config.decisive(architecture)
    )
    if is_first:
        log.info("resuming from %s after %d rows", directory, state["consumed_train_samples"])
    return directory, state


def _refuse_to_begin_again(checkpoints: Path) -> None:
    """A first save that was killed leaves a hidden directory and no `latest`; anything else was a checkpoint once."""
    torn = published_but_torn(checkpoints)
    if torn or (checkpoints / LATEST).exists():
        found = ", ".join(path.name for path in torn) or "none, but `latest` names one"
        raise IntegrityError(
            f"no complete checkpoint left in {checkpoints}: found {found}. Restore one, or delete the directory to begin again."
        )


def _refuse_changes(
    config: TrainConfig,
    now: dict[str, str],
    state: dict[str, Any],
    blend: dict[str, Any],
    directory: Path,
    decisive: dict[str, Any],
) -> None:
    saved = state["fingerprints"]
    refused = [name for name in now if now[name] != saved[name] and name not in config.checkpoint.allow_changed]
    if "blend" in refused and blend.get("parent_sha256") == saved["blend"]:
        # A re-planned blend equals its parent in the rows before consumed_rows.
        if state["consumed_train_samples"] > blend["consumed_rows"]:
            raise ConfigError(
                f"blend was re-planned for another place: it keeps the first {blend['consumed_rows']} rows, but "
                f"{directory.name} has consumed {state['consumed_train_samples']}. Re-plan it for this run."
            )
        refused.remove("blend")
    if refused:
        values = "; ".join(f"{name} got fingerprint {now[name]}, need {saved[name]}" for name in refused)
        raise ConfigError(
            f"{' and '.join(refused)} changed since {directory.name}: {values}{_named(state, decisive)}. Go back to what "
            "the run began with, start a new run_dir, or accept it with --checkpoint.allow_changed "
            f"'[{', '.join(refused)}]'."
        )


def _named(state: dict[str, Any], decisive: dict[str, Any]) -> str:
    """ " (key: before -> now; …)" of the decisive settings that differ."""
    changes = _differences(state.get("decisive", {}), decisive)
    return f" ({'; '.join(changes)})" if changes else ""


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    changes = []
    for key in sorted(before.keys() & now.keys()):
        old, new = before[key], now[key]
        if isinstance(old, dict) and isinstance(new, dict):
            changes += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {old} -> {new}")
    return changes
