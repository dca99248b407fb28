"""What tokens cost, and a budget that is never overdrawn.

Invariant: spent + reserved for requests in flight never exceeds the budget.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_huatuo.errors import ConfigError, HuatuoError


class BudgetReached(HuatuoError):
    """The next request might overdraw the budget: the run stops cleanly."""


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


class Budget:
    """Money of one request log. Without a price nothing is counted; without a limit nothing stops."""

    def __init__(self, price: Price | None, limit_usd: float | None, spent_usd: float) -> None:
        """limit_usd includes what earlier runs spent (`spent_usd`). Raises ConfigError for a limit without a price."""
        if limit_usd is not None and price is None:
            raise ConfigError("a budget needs prices: give the cost of the model's tokens with --prices FILE.")
        if limit_usd is not None and not limit_usd > 0:
            raise ConfigError(f"wrong budget: got {limit_usd}, need more than 0 US dollars.")
        self.price = price
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self._reserved_usd = 0.0
        self._released = asyncio.Condition()

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of so many tokens; 0 without a price."""
        return self.price.cost_usd(prompt_tokens, completion_tokens) if self.price else 0.0

    async def reserve(self, most_prompt_tokens: int, most_completion_tokens: int) -> float:
        """Set aside the most that a request can cost; waits while requests in flight may still free enough.

        Raises: BudgetReached when nothing in flight can free enough.
        """
        if self.price is None or self.limit_usd is None:
            return 0.0
        most = self.price.cost_usd(most_prompt_tokens, most_completion_tokens)
        async with self._released:
            while self.spent_usd + self._reserved_usd + most > self.limit_usd:
                if self._reserved_usd <= 1e-12:
                    raise BudgetReached(
                        f"budget reached: ${self.spent_usd:.4f} of ${self.limit_usd:.4f} spent, and the next request may "
                        f"cost ${most:.4f}. Raise --budget-usd and run again: what is paid is not paid twice."
                    )
                await self._released.wait()
            self._reserved_usd += most
        return most

    async def settle(self, reserved_usd: float, cost_usd: float) -> None:
        """Replace a reservation by what the request really cost (0 when it failed)."""
        self.spent_usd += cost_usd
        if reserved_usd:
            async with self._released:
                self._reserved_usd -= reserved_usd
                self._released.notify_all()
