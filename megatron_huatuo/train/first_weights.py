"""Where a new run has its weights from: a Hugging Face directory or a checkpoint of the same model."""

from __future__ import annotations

from pathlib import Path

from megatron.core.transformer.module import MegatronModule

from megatron_huatuo.checkpoint.integrity import verify_together
from megatron_huatuo.checkpoint.load_hf import load_hf_weights
from megatron_huatuo.checkpoint.store import load_weights
from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import read_architecture
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.storage.run_files import ARCHITECTURE, resolve_checkpoint


def load_first_weights(origin: str, chunks: list[MegatronModule], architecture: Architecture) -> None:
    """Weights from a Hugging Face directory or a checkpoint.

    Raises: ConfigError as `find_first_weights` does, IntegrityError when a checkpoint is damaged.
    """
    directory, is_hugging_face = find_first_weights(origin, architecture)
    if is_hugging_face:
        load_hf_weights(chunks, directory, architecture)
        return
    if problem := verify_together(directory):
        raise IntegrityError(problem)
    load_weights(directory, chunks)


def find_first_weights(origin: str, architecture: Architecture) -> tuple[Path, bool]:
    """(directory, whether it is a Hugging Face one with a config.json; else it is a checkpoint) of model.init_from.

    Raises: ConfigError when `origin` is neither, or its weights belong to a model that computes something else;
    IntegrityError when there is no complete checkpoint.
    """
    path = Path(origin)
    if (path / "config.json").is_file():
        _refuse_differences(architecture, load_architecture(path), path)
        return path, True
    if not path.is_dir():
        raise ConfigError(
            f"wrong model.init_from: got {origin}, need a Hugging Face directory or a checkpoint. Check the path; a model "
            "of the Hub is downloaded first: hf download ORGANISATION/NAME --local-dir DIR."
        )
    directory = resolve_checkpoint(path)
    _refuse_differences(architecture, read_architecture(read_json(directory / ARCHITECTURE)), directory)
    return directory, False


def _refuse_differences(architecture: Architecture, published: Architecture, path: Path) -> None:
    """Weights of equal shapes would load without a word into a model with other positions or another epsilon."""
    if differences := architecture.differences(published):
        told = ", ".join(f"{name} is {own} in the run and {theirs} there" for name, own, theirs in differences)
        raise ConfigError(
            f"model.init_from does not belong to the run's model: {told} ({path}). Name the model that the weights were "
            "trained as: its directory under model.hf, or another model.preset."
        )
