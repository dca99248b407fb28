"""What a family of backbones must say about itself: configuration, weights, and the files of an export.

Invariant: no other file branches on a family's name. The class is Llama's way; a family overrides where it differs, in a
file of its own that `registry.py` lists (docs/add_a_backbone.md walks through one). Importing one loads no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.config_keys import rotary_fields, rotary_json
from megatron_huatuo.models.weight_rules import WeightRule, layer_rules


class Family:
    """Names and rules of the models that share one layout. Llama's where a subclass says nothing else."""

    name: str
    """As `Architecture.family` has it."""
    model_type: str
    """As config.json has it."""
    hf_class: str
    """Class of transformers that computes these models."""
    presets: ClassVar[Mapping[str, Architecture]]
    """Published sizes by the names that `model.preset` takes."""
    wrapper_type: str | None = None
    """model_type of the model of text and pictures whose config.json holds this family's as `text_config`."""
    wrapper_keys: frozenset[str] = frozenset()
    """Keys of that config.json which say nothing about the text part."""
    renamed_weights: ClassVar[Mapping[str, str]] = {}
    """Beginnings of names, as weight files may have them, and as the rules do."""
    left_out_weights: tuple[str, ...] = ()
    """Beginnings of the names of weights that are not the text part's. An import says how many it leaves out."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Values of keys that published config.json files leave out, as the class of transformers has them."""
    own_keys: frozenset[str] = frozenset()
    """Keys of config.json that `architecture_fields` reads itself."""
    own_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Values that config.json must have, where they are not the common ones."""
    layer_types: tuple[str, ...] = ("full_attention",)
    """Kinds of layers that config.json may list."""
    model_code: Path | None = None
    """Python file of this package that an export brings along, because transformers has no class of its own."""

    def text_config(self, config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The part of config.json that describes the text model. Raises: ConfigError when a wrapper holds none."""
        if config["model_type"] != self.wrapper_type:
            return config
        text = config.get("text_config")
        if not isinstance(text, dict):
            raise ConfigError(f"wrong setting 'text_config': got {text!r}, need an object ({where}).")
        outer = {key: value for key, value in config.items() if key not in self.wrapper_keys | {"text_config"}}
        return {**outer, **text}

    def architecture_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Fields of an Architecture that the common keys do not give, and `alibi`.

        Raises: ConfigError naming the key that is not supported.
        """
        if config.get("position_embedding", "rope") not in ("rope", None):
            raise ConfigError(
                f"wrong setting 'position_embedding': got {config['position_embedding']!r}, need 'rope' ({where})."
            )
        return {"alibi": False}

    def config_json(self, architecture: Architecture) -> dict[str, Any]:
        """Keys of config.json beyond the common ones, or in their place."""
        return {"hidden_act": "silu"}

    def rotary_fields(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Fields of an Architecture that describe rotary embeddings. Raises: ConfigError for a kind that is not known."""
        return rotary_fields(config, where)

    def rotary_json(self, architecture: Architecture) -> dict[str, Any]:
        """The way back."""
        return rotary_json(architecture)

    def layer_rules(self, architecture: Architecture) -> list[WeightRule]:
        """Weights of one decoder layer."""
        return layer_rules(architecture)

    def add_tokenizer_code(self, directory: Path, settings: dict[str, Any]) -> None:
        """Files and settings (of tokenizer_config.json) that transformers needs to open the exported tokenizer as it is."""

    def add_model_code(self, directory: Path, config: dict[str, Any]) -> None:
        """Copy `model_code` into an export, and name its classes in the content of config.json."""
        classes = self.transformers_classes()
        if self.model_code is not None and classes is not None:
            shutil.copyfile(self.model_code, directory / self.model_code.name)
            names = zip(("AutoConfig", "AutoModelForCausalLM"), classes, strict=True)
            config["auto_map"] = {auto: f"{self.model_code.stem}.{named.__name__}" for auto, named in names}

    def transformers_classes(self) -> tuple[Any, Any] | None:
        """(configuration, model) classes of this package; None where transformers has its own."""
        return None

    def as_llama(self, architecture: Architecture) -> Architecture | None:
        """The Llama that computes the same with its head normalised once; None where there is none."""
        return None
