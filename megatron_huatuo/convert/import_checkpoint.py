"""A Hugging Face directory becomes a checkpoint that any TP, PP and DP layout loads.

Invariant: no model is built and no remote code runs; weights go from file to file, two tensors in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megatron_huatuo.checkpoint.hf_weight_files import WeightFiles, open_weights
from megatron_huatuo.checkpoint.layout import write_latest
from megatron_huatuo.checkpoint.streaming import TwoBuffers, ahead, one_torch_thread
from megatron_huatuo.convert.state_tensors import StateWriter
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.models.weight_rules import WeightRule
from megatron_huatuo.models.weight_table import each_weight
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.manifest import describe_files, write_json, write_manifest
from megatron_huatuo.storage.run_files import ARCHITECTURE, CHECKPOINT_KIND, STATE, TOKENIZER, TRAINING, iteration_name


@one_torch_thread()
def import_hf(
    hf_directory: str | os.PathLike[str], checkpoint: str | os.PathLike[str], *, ignored_keys: Sequence[str] = ()
) -> Path:
    """Write `checkpoint`/iter_0000000 from a Hugging Face directory; returns it.

    ignored_keys: of config.json, which the user knows to be harmless; the manifest and the model card name them.
    The weights keep their type. Peak memory: the largest tensor twice.
    Raises: ConfigError for an unsupported config.json; DataError or IntegrityError naming tensor and file. Then, or
    when interrupted, `checkpoint` is absent.
    """
    architecture = load_architecture(hf_directory, ignored_keys)
    files = open_weights(hf_directory, architecture)
    tokenizer = _open_tokenizer(hf_directory, architecture)  # before the weights, which take long
    with atomic_directory(checkpoint) as root:
        directory = root / iteration_name(0)
        writer = StateWriter(directory / STATE, architecture.num_layers)
        weights = list(each_weight(architecture))
        for rule, layer, tensor in progress(
            ahead(_read_weights(files, weights)), total=len(weights), description="importing weights", unit="tensor"
        ):
            writer.write(rule, layer, tensor)
        writer.finish()
        write_json(directory / ARCHITECTURE, architecture.to_dict())
        training = {"iteration": 0, "consumed_train_samples": 0, "optimizer_format": None}
        write_json(directory / TRAINING, training | {"ignored_config_keys": list(ignored_keys)})
        if tokenizer is not None:
            tokenizer.copy_to(directory / TOKENIZER)
        described = {f"{STATE}/{name}": entry for name, entry in writer.files.items()}
        others = [path for path in directory.rglob("*") if path.is_file() and path.parent.name != STATE]
        described |= describe_files(directory, [str(path.relative_to(directory)) for path in others])
        write_manifest(
            directory, CHECKPOINT_KIND, {"iteration": 0, "ignored_config_keys": list(ignored_keys)}, described
        )
        write_latest(root, 0)
    return Path(checkpoint) / iteration_name(0)


def _read_weights(
    files: WeightFiles, weights: Sequence[tuple[WeightRule, int]]
) -> Iterator[tuple[WeightRule, int, torch.Tensor]]:
    """(rule, layer, whole megatron tensor); the tensor is valid until the next but one is asked for."""
    dtype = files.dtype
    buffers = TwoBuffers(max(torch.Size(rule.shape).numel() for rule, _ in weights) * dtype.itemsize)
    for rule, layer in weights:
        yield rule, layer, rule.gather(files.read, layer, out=buffers.take(rule.shape, dtype))


def _open_tokenizer(hf_directory: str | os.PathLike[str], architecture: Architecture) -> Tokenizer | None:
    """None, with a warning, where there is none. Raises: DataError when it is torn, or has ids beyond the embedding."""
    try:
        tokenizer = load_tokenizer(hf_directory)
    except ConfigError as error:
        get_logger(__name__).warning("importing weights alone: %s", error)
        return None
    architecture.check_vocabulary(tokenizer.vocab_size, tokenizer.path)
    return tokenizer
