"""The probabilities of the order law as 64-bit integers, computed in whole-number arithmetic alone.

Invariant: the same priority gives the same integers on every machine; each is the true value rounded to 2^-64.

The order is an exponential race (docs/blending.md): every document of a source with priority pi gets an arrival time with
density pi exp(-pi t), and the documents are drawn in order of arrival. Cells of the time axis have widths 2^k, so all that
is ever needed of a priority m * 2^q (1 <= m < 2) are two functions of y = m * 2^e, the hazard of half a cell:

* `split`:   P(an arrival in the cell lies in its first half) = 1 / (1 + exp(-y))
* `special`: 1 - P(its place in the cell is as good as uniform) = 1 - 2y / (exp(2y) - 1)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LOWEST_EXPONENT = -66
"""Below it y < 2^-65, and the first half has probability 1/2 to 64 bits."""
HIGHEST_EXPONENT = 5
"""Above it y >= 64, and the first half has probability 1 to 64 bits."""
HIGHEST_SPECIAL_EXPONENT = 0
"""Cells are ordered as a whole only when y < 2 for every source in them."""

_FRACTION_BITS = 256
_ONE = 1 << _FRACTION_BITS


@functools.lru_cache(maxsize=65536)
def split_and_special(mantissa: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both functions for m = mantissa / 2^52 and all exponents from LOWEST_EXPONENT on, in units of 2^-64.

    mantissa: whole number in [2^52, 2^53). Returns 72 `split` values and 67 `special` values.
    Cost: about 0.1 ms. Error: exp(-y) carries 2^-249 after the last squaring, so only the final rounding counts.
    """
    shift = 52 - LOWEST_EXPONENT
    y = (mantissa << _FRACTION_BITS) >> shift
    power, survival = _ONE, _ONE  # Taylor series of exp(-y), y < 2^-65: five terms reach 2^-256
    for term in range(1, 6):
        power = (power * y) >> _FRACTION_BITS
        survival += (-1) ** term * (power // math.factorial(term))
    splits, specials = [], []
    for exponent in range(LOWEST_EXPONENT, HIGHEST_EXPONENT + 1):
        split = _rounded_ratio(_ONE, _ONE + survival)
        splits.append(min(split, 2**64 - 1))
        both_halves = (survival * survival) >> _FRACTION_BITS  # exp(-2y)
        if exponent <= HIGHEST_SPECIAL_EXPONENT:
            hazard = (mantissa << (_FRACTION_BITS + 1)) >> (52 - exponent) if exponent <= 52 else 0
            regular = hazard * both_halves // (_ONE - both_halves)
            specials.append(_rounded_ratio(_ONE - regular, _ONE))
        survival = both_halves
    return tuple(splits), tuple(specials)


def _rounded_ratio(numerator: int, denominator: int) -> int:
    return ((numerator << 65) // denominator + 1) >> 1


def mantissa_and_exponent(priority: float) -> tuple[int, int]:
    """The priority as mantissa / 2^52 * 2^exponent, exactly; mantissa in [2^52, 2^53)."""
    fraction, exponent = math.frexp(priority)
    return int(fraction * 2**53), exponent - 1


def probability_tables(
    priorities: Sequence[float],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint64], NDArray[np.uint64]]:
    """Tables of all sources: sources whose priorities differ by a power of two share one.

    Returns: table number of each source int32 [S], exponent of each priority int32 [S], split uint64 [T, 72],
    special uint64 [T, 67].
    """
    parts = [mantissa_and_exponent(priority) for priority in priorities]
    mantissas = sorted({mantissa for mantissa, _ in parts})
    number = {mantissa: index for index, mantissa in enumerate(mantissas)}
    tables = [split_and_special(mantissa) for mantissa in mantissas]
    return (
        np.array([number[mantissa] for mantissa, _ in parts], dtype=np.int32),
        np.array([exponent for _, exponent in parts], dtype=np.int32),
        np.array([table[0] for table in tables], dtype=np.uint64),
        np.array([table[1] for table in tables], dtype=np.uint64),
    )
