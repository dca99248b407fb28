"""What a run forgets: loss on held-out general text, against the loss of the weights that it began with.

A source of `data.validation` that is marked `general` is measured before the first step and at every validation. An export
refuses a model whose loss there rose by more than the source allows, unless it is told to say so in the model card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.train.train_config import TrainConfig, ValidationSource


def check_general_sources(config: TrainConfig) -> None:
    """Raises: ConfigError for a general source without a base to compare with, and for limits that nothing uses."""
    for number, source in enumerate(config.data.validation):
        key = f"data.validation[{number}]"
        if source.general and config.model.init_from is None:
            raise ConfigError(
                f"wrong {key}.general: source {source.name!r} is compared with the base model, but the run begins with random "
                "weights. Set model.init_from, or leave `general` out."
            )
        if not source.general and source.max_increase != ValidationSource.max_increase:
            raise ConfigError(
                f"wrong {key}.max_increase: got {source.max_increase} for source {source.name!r}, which is not general. Set "
                "general: true, or leave it out."
            )
        if source.max_increase < 0:
            raise ConfigError(f"wrong {key}.max_increase: got {source.max_increase}, need 0 or more.")


class Forgetting:
    """Losses on the general sources: of the base, and the newest."""

    def __init__(self, sources: Sequence[ValidationSource], before: Mapping[str, Any] | None = None) -> None:
        """before: what `to_plain` gave when the checkpoint was written that the run goes on from."""
        self._limits = {source.name: source.max_increase for source in sources if source.general}
        known = before or {}
        self._base = {name: known[name]["base_loss"] for name in self._limits if name in known}
        self._last = {name: known[name]["loss"] for name in self._limits if name in known}

    @property
    def unmeasured(self) -> list[str]:
        """General sources whose base has not been measured."""
        return [name for name in self._limits if name not in self._base]

    def begin(self, losses: Mapping[str, float]) -> None:
        """Losses of the weights that the run begins with."""
        self._base |= losses

    def measure(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Note a validation; returns the relative increase of each general source in it, 0.01 for one per cent."""
        self._last |= {name: losses[name] for name in self._base if name in losses}
        return {name: losses[name] / self._base[name] - 1 for name in self._base if name in losses}

    def to_plain(self) -> dict[str, dict[str, float | None]]:
        """{source: {base_loss, loss: null before the first validation, max_increase}}."""
        return {
            name: {"base_loss": base, "loss": self._last.get(name), "max_increase": self._limits[name]}
            for name, base in self._base.items()
        }
