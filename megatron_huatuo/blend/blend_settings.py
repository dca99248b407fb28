"""The blend's configuration: rows, packing, and the sources with their priorities.

Invariant: a configuration that reads is complete and sound; every error names the file, the source and the value.
"""

from __future__ import annotations

import math
import os
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_huatuo.blend.order_draws import MAX_SOURCES, check_seed, draws_of_epochs
from megatron_huatuo.blend.row_packing import DEFAULT_WINDOW
from megatron_huatuo.config import parse_config, read_yaml
from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class BlendSource:
    """One corpus of the blend."""

    name: str
    path_prefix: str
    """The index is `path_prefix`.bin, .idx and .json; $NAME stands for the environment variable NAME, where it is set."""
    priority: float | None = None
    """Draw weight of one document, finite and > 0; or give `level`."""
    level: float | None = None
    """The priority is beta ** level."""
    epochs: float = 1
    """Passes over the source; of the last, partial one, the first round(fraction * documents)."""

    def weight(self, beta: float) -> float:
        """Draw weight of one document; infinity where beta ** level is too large or no real number."""
        if self.priority is not None:
            return self.priority
        try:
            return float(beta ** (self.level or 0.0))
        except (OverflowError, ZeroDivisionError, TypeError):
            return math.inf


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

    @property
    def priorities(self) -> list[float]:
        """Draw weight of one document of each source [S]."""
        return [source.weight(self.beta) for source in self.sources]


@dataclass(frozen=True)
class BuildOptions:
    """How a blend is built; nothing here changes the order."""

    megatron_indices: bool = False
    """Also write Megatron's pair, int16 dataset and int64 sample index of every packed document."""
    num_threads: int | None = None
    """Threads that draw the order; null: all cores."""
    device: str = "cpu"
    """cpu or cuda: where the order is drawn, same bytes."""


def read_blend_config(path: str | os.PathLike[str]) -> BlendConfig:
    """Read and check a YAML file. Raises: ConfigError naming file, key and value."""
    return parse_blend_config(read_yaml(path), str(path))


def parse_blend_config(content: Any, where: str) -> BlendConfig:
    """The configuration in a plain mapping. Raises: ConfigError naming `where`, key and value."""
    config = parse_config(BlendConfig, content, where)
    expanded = [replace(each, path_prefix=os.path.expandvars(each.path_prefix)) for each in config.sources]
    config = replace(config, sources=tuple(expanded))
    _check_whole("seq_length", config.seq_length, 2, where)
    _check_whole("packing.window", config.packing.window, 1, where)
    check_seed(config.seed)
    if not 1 <= len(config.sources) <= MAX_SOURCES:
        raise ConfigError(f"wrong sources: need a list of 1 to {MAX_SOURCES} ({where})")
    for number, source in enumerate(config.sources):
        _check_source(source, config.beta, f"{where}, sources[{number}], source {source.name!r}")
    _check_different(config.sources, where)
    return config


def _check_source(source: BlendSource, beta: float, where: str) -> None:
    for key, text in (("name", source.name), ("path_prefix", source.path_prefix)):
        if not text.strip():
            raise ConfigError(f"wrong {key}: got {text!r}, need text ({where})")
    if not source.name.isprintable():
        raise ConfigError(f"wrong name: got {source.name!r}, need text without line breaks and tabs ({where})")
    if (source.priority is None) == (source.level is None):
        raise ConfigError(f"need exactly one of priority and level ({where})")
    if not 0 < source.weight(beta) < math.inf:
        got = source.priority if source.level is None else f"beta {beta} ** level {source.level}"
        raise ConfigError(f"wrong priority: got {got}, need a finite number > 0 ({where})")
    draws_of_epochs(1, source.epochs, f"source {source.name!r}")


def _check_different(sources: tuple[BlendSource, ...], where: str) -> None:
    """Names that a reader of a table tells apart, and indexes of their own."""
    names: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for source in sources:
        alike = unicodedata.normalize("NFKC", source.name).casefold().strip()
        if source.name == names.get(alike):
            raise ConfigError(f"two sources have one name: got {source.name!r} again, need different names ({where})")
        if alike in names:
            raise ConfigError(
                f"two sources have nearly one name: got {source.name!r} beside {names[alike]!r}, need names that differ "
                f"in more than case, spaces around them or the form of their characters ({where})"
            )
        prefix = os.path.abspath(source.path_prefix)
        if prefix in prefixes:
            raise ConfigError(
                f"two sources have one index: got path_prefix {source.path_prefix!r} for {source.name!r} and "
                f"{prefixes[prefix]!r}, need one source. Raise its epochs to draw its documents more often ({where})"
            )
        names[alike], prefixes[prefix] = source.name, source.name


def _check_whole(key: str, value: int, least: int, where: str) -> None:
    if not least <= value < 2**31:
        raise ConfigError(f"wrong {key}: got {value!r}, need a whole number from {least} to {2**31 - 1} ({where})")
