"""A budget that is never overdrawn, by any number of tasks on any number of machines.

Invariant: spent + reserved for requests in flight <= granted to the task, and the sum of all grants <= the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_huatuo.config import above_zero, read_yaml
from megatron_huatuo.errors import ConfigError, HuatuoError
from megatron_huatuo.llm.request_log import Totals

# A task draws the thousandth part of the budget at a time: few locks, and little lies idle in the hands of other tasks.
_GRANTS_A_BUDGET = 1000


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


@dataclass(frozen=True)
class SharedBudget:
    """The money that all tasks of one output share: a locked file with the sum of what they were granted."""

    path: Path
    limit_usd: float

    def __post_init__(self) -> None:
        above_zero("--budget-usd", self.limit_usd)

    def start(self, spent_usd: float) -> None:
        """Start from what was really spent. Only while no task runs: grants of killed tasks return."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._change(spent_usd)

    def grant(self, least_usd: float) -> float:
        """A grant of at least so much; 0.0 when there is not so much left."""
        with self._locked() as handle:
            left = self.limit_usd - self._read(handle)
            if least_usd > left:
                return 0.0
            granted = min(left, max(least_usd, self.limit_usd / _GRANTS_A_BUDGET))
            self._write(handle, self._read(handle) + granted)
            return granted

    def give_back(self, usd: float) -> None:
        """What a task has left at its end."""
        self._change(-usd)

    def _change(self, usd: float) -> None:
        with self._locked() as handle:
            self._write(handle, self._read(handle) + usd)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        except OSError as error:
            raise ConfigError(f"a budget needs file locks: {error} ({self.path}). Choose another output.") from error
        finally:
            os.close(handle)

    @staticmethod
    def _read(handle: int) -> float:
        return float(os.pread(handle, 32, 0) or 0)

    @staticmethod
    def _write(handle: int, usd: float) -> None:
        os.pwrite(handle, f"{usd:32.12f}".encode(), 0)  # one call of one length: a kill leaves the old or the new


class Budget:
    """Money of one task. Without prices nothing is counted; without a shared budget nothing stops."""

    def __init__(self, prices: Mapping[str, Price] | None = None, shared: SharedBudget | None = None) -> None:
        self.prices, self.shared = prices or {}, shared
        self.spent_usd = 0.0
        self._granted_usd, self._reserved_usd = 0.0, 0.0
        self._released = asyncio.Condition()

    def cost_usd(self, model: str, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of so many tokens; 0 without a price."""
        price = self.prices.get(model)
        return price.cost_usd(prompt_tokens, completion_tokens) if price else 0.0

    async def reserve(self, model: str, most_prompt_tokens: int, most_completion_tokens: int) -> float:
        """Set aside the most that a request can cost; waits while requests in flight may still free enough.

        Raises: BudgetReached when nothing in flight can free enough.
        """
        if self.shared is None:
            return 0.0
        most = self.cost_usd(model, most_prompt_tokens, most_completion_tokens)
        async with self._released:
            while (lacking := self.spent_usd + self._reserved_usd + most - self._granted_usd) > 0:
                if granted := self.shared.grant(lacking):
                    self._granted_usd += granted
                elif self._reserved_usd <= 1e-12:
                    raise BudgetReached(
                        f"budget reached: of ${self.shared.limit_usd:.4f} too little is left for the next request, which "
                        f"may cost ${most:.4f}. Raise --budget-usd and run again: what is paid is not paid twice."
                    )
                else:
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

    def close(self) -> None:
        """Give back what was not spent."""
        if self.shared is not None:
            self.shared.give_back(self._granted_usd - self.spent_usd)
            self._granted_usd = self.spent_usd


def load_prices(path: str) -> dict[str, Price]:
    """A YAML table `{model: {prompt_usd_per_million, completion_usd_per_million}}`.

    Raises: ConfigError naming the file and the model.
    """
    try:
        table = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"cannot read the price table: {error}") from error
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


def spent_usd(prices: Mapping[str, Price] | None, totals: Iterable[Totals]) -> float:
    """Money of all requests; models without a price count nothing."""
    prices = prices or {}
    return sum(
        prices[row.model].cost_usd(row.prompt_tokens, row.completion_tokens) for row in totals if row.model in prices
    )
