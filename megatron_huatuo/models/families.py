"""The table of all families: by the name in an Architecture, by the model_type of config.json, and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.baichuan import Baichuan2
from megatron_huatuo.models.family import Family
from megatron_huatuo.models.gemma import Gemma3
from megatron_huatuo.models.llama import Llama
from megatron_huatuo.models.mistral import Mistral
from megatron_huatuo.models.qwen import Qwen2, Qwen3
from megatron_huatuo.storage.manifest import read_json, sha256_file

_FAMILIES: dict[str, Family] = {
    family.name: family for family in (Llama(), Mistral(), Qwen2(), Qwen3(), Gemma3(), Baichuan2())
}


def register_family(family: Family) -> None:
    """Add one from outside the package. Raises: ConfigError when its name, model_type or a preset's name is taken."""
    taken = {"name": _FAMILIES, "model_type": {each.model_type for each in _FAMILIES.values()}}
    for what, names in taken.items():
        if getattr(family, what) in names:
            raise ConfigError(f"family is registered already: got {what} = {getattr(family, what)!r}. Choose another.")
    if both := sorted(family.presets.keys() & presets().keys()):
        raise ConfigError(f"preset is registered already: got {both[0]!r} of family {family.name!r}. Choose another.")
    _FAMILIES[family.name] = family


def get_family(name: str) -> Family:
    """Raises: ConfigError naming the families that exist."""
    if name not in _FAMILIES:
        raise ConfigError(f"unknown family: got {name!r}, need one of {', '.join(_FAMILIES)}.")
    return _FAMILIES[name]


def family_of_model_type(model_type: Any, where: str) -> Family:
    """Family of a config.json. Raises: ConfigError naming the types that exist."""
    for family in _FAMILIES.values():
        if model_type is not None and model_type in (family.model_type, family.wrapper_type):
            return family
    known = ", ".join(
        filter(None, (name for each in _FAMILIES.values() for name in (each.model_type, each.wrapper_type)))
    )
    raise ConfigError(f"unsupported 'model_type': got {model_type!r}, need one of {known} ({where}).")


def presets() -> dict[str, Architecture]:
    """Published sizes of all families, as the config.json files of the base models give them; `toy` is the demo's."""
    return {name: preset for family in _FAMILIES.values() for name, preset in family.presets.items()}


def get_preset(name: str) -> Architecture:
    """Raises: ConfigError naming the presets that exist."""
    known = presets()
    if name not in known:
        raise ConfigError(f"unknown preset: got {name!r}, need one of {', '.join(known)} (key model.preset).")
    return known[name]


def read_architecture(content: Mapping[str, Any]) -> Architecture:
    """Of a checkpoint's architecture.json. Raises: ConfigError naming a wrong field, or a family that is not known."""
    architecture = Architecture.from_dict(content)
    get_family(architecture.family)
    return architecture


def classes_of_export(directory: Path) -> tuple[Any, Any] | None:
    """(configuration, model) classes of this package for a Hugging Face directory whose Python file is the package's own.

    It is known by its hash: what lies in a model directory is never run because of its name. None for every other one.
    """
    model_type = read_json(directory / "config.json").get("model_type")
    family = next((family for family in _FAMILIES.values() if family.model_type == model_type), None)
    if family is None or family.model_code is None:
        return None
    found = directory / family.model_code.name
    is_own = found.is_file() and sha256_file(found) == sha256_file(family.model_code)
    return family.transformers_classes() if is_own else None
