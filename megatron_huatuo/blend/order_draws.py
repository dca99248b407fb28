"""What an order is drawn from: the checked inputs of the priority law.

Invariant: an instance is sound. Sizes, priorities and seeds are finite and in range, so the kernels need no second look.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_huatuo.errors import ConfigError

ORDER_VERSION = 1
"""Changes whenever the same inputs would give other bytes."""
MAX_SOURCES = 65_535
MAX_DRAWS = 2**37
"""Most draws of one source: a split consumes up to 2^32 blocks of random numbers."""


@dataclass(frozen=True)
class Draws:
    """Sources with their priorities, and which of their documents are still to be drawn.

    The t-th draw of source i (t from 0) is held_back[i][t], and after those the document of draw number
    k = first_draw[i] + t - len(held_back[i]) in the source's own sequence: epoch k // n, place k % n of that epoch's
    permutation. A fresh order has first_draw 0 and nothing held back; re-planning needs both.
    """

    num_documents: NDArray[np.int64]
    """Documents of each source [S]."""
    num_draws: NDArray[np.int64]
    """Draws to make from each source [S], all epochs together."""
    priorities: NDArray[np.float64]
    """Weight of each single document of a source [S], finite and > 0."""
    seed: int
    """Seed of the order, 0 <= seed < 2^64."""
    permutation_seeds: NDArray[np.uint64]
    """Seed of each source's permutations [S]."""
    permutation_streams: NDArray[np.uint32]
    """Number of each source among those of its permutation seed [S]."""
    first_draw: NDArray[np.int64]
    """Draw number of each source at which its own sequence goes on [S]."""
    held_back: tuple[NDArray[np.int64], ...] = field(default=())
    """Documents of each source to be drawn before that, in order; empty tuple: none anywhere."""

    @property
    def num_sources(self) -> int:
        return len(self.num_documents)

    @property
    def total(self) -> int:
        """Draws of all sources together."""
        return int(self.num_draws.sum())

    def held(self, source: int) -> NDArray[np.int64]:
        """Held-back documents of one source [H]."""
        return self.held_back[source] if self.held_back else np.empty(0, dtype=np.int64)


def fresh_draws(
    num_documents: Sequence[int] | ArrayLike,
    priorities: Sequence[float] | ArrayLike,
    seed: int,
    epochs: Sequence[float] | ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> Draws:
    """Check the inputs of a whole order.

    num_documents: whole numbers >= 0 [S]; priorities: finite and > 0 [S]; epochs: finite and >= 0 [S], default 1;
    names: for the messages, default the source numbers.
    Raises: ConfigError naming the source and its value.
    """
    sizes = _whole_numbers(num_documents, "num_documents", names)
    sources = len(sizes)
    if not 1 <= sources <= MAX_SOURCES:
        raise ConfigError(f"wrong number of sources: got {sources}, need 1 to {MAX_SOURCES}")
    weights = _priorities(priorities, sources, names)
    draws = [
        draws_of_epochs(size, epoch, _name(names, index))
        for index, (size, epoch) in enumerate(zip(sizes, _epochs(epochs, sources, names), strict=True))
    ]
    check_seed(seed)
    return Draws(
        num_documents=np.array(sizes, dtype=np.int64),
        num_draws=np.array(draws, dtype=np.int64),
        priorities=weights,
        seed=int(seed),
        permutation_seeds=np.full(sources, seed, dtype=np.uint64),
        permutation_streams=np.arange(sources, dtype=np.uint32),
        first_draw=np.zeros(sources, dtype=np.int64),
    )


def draws_of_epochs(num_documents: int, epochs: float, name: str = "source") -> int:
    """Draws that `epochs` passes over a source make: whole passes, then the first round(fraction * n) of the next.

    `epochs` counts as the decimal number it is written as, so 0.35 of 20 documents are 7.
    Raises: ConfigError for a negative or non-finite number, or more than 2^37 draws.

    >>> draws_of_epochs(20, 0.35), draws_of_epochs(10, 3), draws_of_epochs(3, 1.5)
    (7, 30, 5)
    """
    if not (isinstance(epochs, (int, float)) and math.isfinite(epochs) and epochs >= 0):
        raise ConfigError(f"wrong epochs of {name}: got {epochs}, need a finite number >= 0")
    exact = Fraction(repr(epochs))
    whole = math.floor(exact)
    draws = whole * num_documents + round((exact - whole) * num_documents)
    if draws > MAX_DRAWS:
        raise ConfigError(f"too many draws of {name}: got {draws} (documents x epochs), need at most {MAX_DRAWS}")
    return draws


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of Python or NumPy; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_seed(seed: int) -> None:
    """Raises: ConfigError unless seed is a whole number in [0, 2^64)."""
    if not (is_whole(seed) and 0 <= int(seed) < 2**64):
        raise ConfigError(f"wrong seed: got {seed!r}, need a whole number from 0 to 2^64 - 1")


def _name(names: Sequence[str] | None, index: int) -> str:
    return f"source {names[index]!r}" if names else f"source {index}"


def _numbers(values: Sequence[float] | ArrayLike, what: str, names: Sequence[str] | None) -> list[Any]:
    """One int or float a source. Looked at one by one: NumPy would make 1 of True and text of a mixed list."""
    entries = values.tolist() if isinstance(values, (np.ndarray, np.generic)) else values
    if isinstance(entries, (str, bytes)) or not isinstance(entries, Sequence):
        raise ConfigError(f"wrong {what}: got {entries!r}, need one number a source")
    numbers = [entry.item() if isinstance(entry, np.generic) else entry for entry in entries]
    for index, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ConfigError(f"wrong {what} of {_name(names, index)}: got {number!r}, need a number")
    return numbers


def _whole_numbers(values: Sequence[int] | ArrayLike, what: str, names: Sequence[str] | None) -> list[int]:
    numbers = _numbers(values, what, names)
    for index, number in enumerate(numbers):
        if not (0 <= number < 2**63 and number == int(number)):
            raise ConfigError(
                f"wrong {what} of {_name(names, index)}: got {number!r}, need a whole number >= 0 and below 2^63"
            )
    return [int(number) for number in numbers]


def _priorities(values: Sequence[float] | ArrayLike, sources: int, names: Sequence[str] | None) -> NDArray[np.float64]:
    numbers = _numbers(values, "priority", names)
    if len(numbers) != sources:
        raise ConfigError(f"wrong number of priorities: got {len(numbers)}, need one for each of {sources} sources")
    for index, number in enumerate(numbers):
        if not 0 < number <= sys.float_info.max:
            raise ConfigError(f"wrong priority of {_name(names, index)}: got {number}, need a finite number > 0")
    return np.array(numbers, dtype=np.float64)


def _epochs(values: Sequence[float] | ArrayLike | None, sources: int, names: Sequence[str] | None) -> list[float]:
    if values is None:
        return [1] * sources
    numbers = _numbers(values, "epochs", names)
    if len(numbers) != sources:
        raise ConfigError(f"wrong number of epochs: got {len(numbers)}, need one for each of {sources} sources")
    return numbers
