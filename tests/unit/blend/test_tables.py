"""Probabilities of the race as 64-bit integers: against 60-digit arithmetic."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from megatron_huatuo.blend.order_tables import (
    HIGHEST_SPECIAL_EXPONENT,
    LOWEST_EXPONENT,
    mantissa_and_exponent,
    split_and_special,
)


@pytest.mark.parametrize("priority", [1.0, 3.0, 0.1, 1.9999999999999998, 1e-310, 7.7e200])
def test_tables_are_the_true_values_to_64_bits(priority: float) -> None:
    mantissa, exponent = mantissa_and_exponent(priority)
    assert 2**52 <= mantissa < 2**53
    assert mantissa * Fraction(2) ** (exponent - 52) == Fraction(priority)
    splits, specials = split_and_special(mantissa)
    with localcontext() as context:
        context.prec = 120
        for index, split in enumerate(splits):
            y = Decimal(mantissa) / 2**52 * Decimal(2) ** (LOWEST_EXPONENT + index)
            assert abs(split - 2**64 / (1 + (-y).exp())) <= 1
            if LOWEST_EXPONENT + index <= HIGHEST_SPECIAL_EXPONENT:
                assert abs(specials[index] - 2**64 * (1 - 2 * y / ((2 * y).exp() - 1))) <= Decimal("0.51")
        assert len(specials) == HIGHEST_SPECIAL_EXPONENT - LOWEST_EXPONENT + 1
