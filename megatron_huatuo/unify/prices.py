"""What tokens cost: a table by model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    prompt_usd_per_million: float
    completion_usd_per_million: float

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of so many tokens."""
        return (
            prompt_tokens * self.prompt_usd_per_million + completion_tokens * self.completion_usd_per_million
        ) / 1_000_000


def load_prices(path: str) -> dict[str, Price]:
    """A YAML table `{model: {prompt_usd_per_million, completion_usd_per_million}}`.

    Raises: ConfigError naming the file and the model.
    """
    try:
        table = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the price table: {error} ({path}). Check the file.") from error
    if not isinstance(table, dict):
        raise ConfigError(f"wrong price table: got {type(table).__name__}, need {{model: prices}} ({path}).")
    return {str(model): _parse_price(str(model), raw, path) for model, raw in table.items()}


def _parse_price(model: str, raw: Any, path: str) -> Price:
    try:
        price = Price(**{key: float(value) for key, value in raw.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"wrong price for model {model!r}: need prompt_usd_per_million and completion_usd_per_million ({path})."
        ) from error
    if not all(math.isfinite(value) and value >= 0 for value in vars(price).values()):
        raise ConfigError(f"wrong price for model {model!r}: got {price}, need finite numbers >= 0 ({path}).")
    return price
