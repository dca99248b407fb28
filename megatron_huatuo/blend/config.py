"""The blend's configuration file: rows, packing, and the sources with their priorities.

Invariant: a configuration that reads is complete and sound; every error names the file, the source and the value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_huatuo.blend.draws import MAX_SOURCES, check_seed, draws_of_epochs
from megatron_huatuo.blend.packing import DEFAULT_WINDOW
from megatron_huatuo.config import read_yaml
from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class BlendSource:
    """One corpus of the blend."""

    name: str
    path_prefix: str
    """The index is `path_prefix`.bin, .idx and .json."""
    priority: float
    """Draw weight of one document, > 0."""
    epochs: float = 1
    """Passes over the source; of the last, partial one, the first round(fraction * documents)."""


@dataclass(frozen=True)
class PackingConfig:
    """How documents become rows."""

    window: int = DEFAULT_WINDOW
    """No document moves by so many places or more to fill a row; 1 keeps the drawing order (next-fit)."""


@dataclass(frozen=True)
class BlendConfig:
    """Everything that decides a blend, beside the indexes themselves."""

    seq_length: int
    """Tokens of a row."""
    seed: int
    sources: tuple[BlendSource, ...]
    beta: float = 2.0
    """Priority of a source given by level: beta ** level."""
    packing: PackingConfig = field(default_factory=PackingConfig)


def read_blend_config(path: str | os.PathLike[str]) -> BlendConfig:
    """Read and check a YAML file. Raises: ConfigError naming file, key and value."""
    return parse_blend_config(read_yaml(path), str(path))


def parse_blend_config(content: Any, where: str) -> BlendConfig:
    """The configuration in a plain mapping. Raises: ConfigError naming `where`, key and value."""
    top = _section(content, BlendConfig, where, required=("seq_length", "seed", "sources"))
    packing = _section(top.get("packing") or {}, PackingConfig, f"{where}, packing")
    beta = _number(top.get("beta", 2.0), "beta", where)
    seed = top["seed"]
    check_seed(seed)
    sources = top["sources"]
    if not isinstance(sources, list) or not 1 <= len(sources) <= MAX_SOURCES:
        raise ConfigError(f"wrong sources: need a list of 1 to {MAX_SOURCES} ({where})")
    parsed = tuple(_source(source, beta, f"{where}, sources[{index}]") for index, source in enumerate(sources))
    names = [source.name for source in parsed]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"two sources have one name: got {name!r} again, need different names ({where})")
    return BlendConfig(
        seq_length=_whole(top["seq_length"], "seq_length", 2, where),
        seed=seed,
        sources=parsed,
        beta=beta,
        packing=PackingConfig(window=_whole(packing.get("window", DEFAULT_WINDOW), "packing.window", 1, where)),
    )


def _source(content: Any, beta: float, where: str) -> BlendSource:
    keys = ("name", "path_prefix", "priority", "level", "epochs")
    section = _section(content, keys, where, required=("name", "path_prefix"))
    name, prefix = section["name"], section["path_prefix"]
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"wrong name: got {name!r}, need text ({where})")
    where = f"{where}, source {name!r}"
    if not isinstance(prefix, str) or not prefix.strip():
        raise ConfigError(f"wrong path_prefix: got {prefix!r}, need text ({where})")
    if ("priority" in section) == ("level" in section):
        raise ConfigError(f"need exactly one of priority and level ({where})")
    if "priority" in section:
        priority = _number(section["priority"], "priority", where)
    else:
        try:
            priority = float(beta ** _number(section["level"], "level", where))
        except (OverflowError, ZeroDivisionError, TypeError):
            priority = math.inf
    if not (math.isfinite(priority) and priority > 0):
        got = section.get("priority", f"beta {beta} ** level {section.get('level')}")
        raise ConfigError(f"wrong priority: got {got}, need a finite number > 0 ({where})")
    epochs = _number(section.get("epochs", 1), "epochs", where)
    draws_of_epochs(1, epochs, f"source {name!r}")
    return BlendSource(name=name, path_prefix=prefix, priority=priority, epochs=epochs)


def _section(
    content: Any, known: type[Any] | tuple[str, ...], where: str, required: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    names = known if isinstance(known, tuple) else tuple(item.name for item in dataclasses.fields(known))
    if not isinstance(content, Mapping):
        raise ConfigError(f"wrong section: got {type(content).__name__}, need keys and values ({where})")
    for key in content:
        if key not in names:
            raise ConfigError(f"unknown key: got {key!r}, need one of {', '.join(names)} ({where})")
    for key in required:
        if content.get(key) is None:
            raise ConfigError(f"missing key: {key} ({where})")
    return content


def _number(value: Any, key: str, where: str) -> float:
    """A YAML number; "1e-3", which YAML reads as text, counts as one."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"wrong {key}: got {value!r}, need a number ({where})")
    return value


def _whole(value: Any, key: str, least: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ConfigError(f"wrong {key}: got {value!r}, need a whole number from {least} to {2**31 - 1} ({where})")
    return value
