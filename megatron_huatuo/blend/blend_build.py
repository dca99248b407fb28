"""Builds the blend of a configuration, or finds that it is there already.

Invariant: the directory appears complete or not at all; its bytes depend on the configuration and the indexes alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from megatron_huatuo.blend.blend_settings import BlendConfig, BuildOptions
from megatron_huatuo.blend.blend_sources import OpenSource, open_sources
from megatron_huatuo.blend.blend_write import BlendJob, write_blend
from megatron_huatuo.blend.order_draws import ORDER_VERSION, fresh_draws
from megatron_huatuo.blend.row_packing import PACKING_VERSION
from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import DataError, HuatuoError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.blend_files import BLEND_KIND
from megatron_huatuo.storage.manifest import read_manifest, verify_files

_log = get_logger(__name__)
DEFAULT_OPTIONS = BuildOptions()


def build_blend(config: BlendConfig, output: str | os.PathLike[str], options: BuildOptions = DEFAULT_OPTIONS) -> Path:
    """Build the blend of a configuration, or find that `output` holds it already.

    Returns: the directory. Raises: ConfigError, DataError, IntegrityError naming source and file.
    """
    sources = open_sources(config)
    inputs = describe_inputs(config, sources, options)
    if is_built(Path(output), inputs):
        return Path(output)
    draws = fresh_draws(
        [source.num_usable for source in sources],
        config.priorities,
        config.seed,
        [source.epochs for source in config.sources],
        [source.name for source in sources],
    )
    return write_blend(BlendJob(config, sources, draws, inputs), output, options)


def describe_inputs(config: BlendConfig, sources: list[OpenSource], options: BuildOptions) -> dict[str, Any]:
    """Everything that decides the bytes of a blend, for comparison with the manifest of an existing one."""
    return {
        "order_version": ORDER_VERSION,
        "packing_version": PACKING_VERSION,
        "seq_length": config.seq_length,
        "seed": config.seed,
        "packing": to_plain(config.packing),
        "megatron_indices": options.megatron_indices,
        "sources": {
            source.name: {
                "position": position,
                "path_prefix": source.path_prefix,
                "priority": priority,
                "epochs": settings.epochs,
                "index": source.fingerprint,
            }
            for position, (settings, priority, source) in enumerate(
                zip(config.sources, config.priorities, sources, strict=True)
            )
        },
    }


def is_built(output: Path, inputs: dict[str, Any]) -> bool:
    """Whether `output` holds this very blend, whole; otherwise say what differs."""
    if not output.exists():
        return False
    try:
        manifest = read_manifest(output, BLEND_KIND)
        changes = describe_changes(manifest.get("inputs", {}), inputs)
        if not changes:
            verify_files(output, manifest)
            _log.info("found and reused: %s is this blend already", output)
            return True
    except HuatuoError as error:
        if any(output.iterdir()) and not (output / "manifest.json").exists():
            raise DataError(
                f"output directory is not a blend: {output} holds other files. Choose another one, or delete it."
            ) from error
        _log.warning("%s is built again: %s", output, error)
        return False
    _log.warning("%s is built again, changed: %s", output, "; ".join(changes))
    return False


def describe_changes(old: Any, new: Any, key: str = "") -> list[str]:
    """Differences of two nested mappings as "key: old -> new".

    >>> describe_changes({"seed": 1, "packing": {"window": 8}}, {"seed": 2, "packing": {"window": 8}})
    ['seed: 1 -> 2']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            text
            for name in names
            for text in describe_changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    if old == new:
        return []
    return [f"{key}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "…"
