"""Intervals and tests against scipy, hand-counted cases, and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from megatron_huatuo.evaluate.significance import (
    cohen_kappa,
    holm,
    interval_of_mean,
    interval_of_mean_share,
    interval_of_paired_difference,
    mcnemar_exact,
    weighted_kappa,
    wilson_interval,
)


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (229, 480), (1, 10_000)])
def test_wilson_interval_equals_that_of_scipy(correct, count):
    expected = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_covers_the_truth_as_often_as_it_says():
    count, share = 40, 0.3
    weights = stats.binom.pmf(np.arange(count + 1), count, share)
    covered = [low <= share <= high for low, high in (wilson_interval(k, count) for k in range(count + 1))]
    assert 0.93 < float(weights @ covered) < 0.98


def test_mcnemar_exact_equals_the_binomial_test():
    for only_a, only_b in itertools.product(range(0, 30, 3), repeat=2):
        total = only_a + only_b
        expected = stats.binomtest(only_a, total).pvalue if total else 1.0
        assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, abs=1e-12)
    assert 0 < mcnemar_exact(40_000, 41_000) < 0.001  # no overflow
    assert mcnemar_exact(0, 3000) < 1e-300


def test_bootstrap_intervals_agree_with_the_normal_approximation():
    parts = [(120, 400), (90, 200), (300, 500)]
    variance = sum((c / n) * (1 - c / n) / n for c, n in parts) / 9
    mean = sum(c / n for c, n in parts) / 3
    low, high = interval_of_mean_share(parts)
    assert (low + high) / 2 == pytest.approx(mean, abs=0.002)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.05)
    values = [0.0, 1.0, 1.0, 0.5] * 50
    low, high = interval_of_mean(values)
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(values) / math.sqrt(200), rel=0.05)
    assert interval_of_mean([3.0]) == (3.0, 3.0)
    low, high = interval_of_paired_difference(60, 40, 500)
    assert low < 0.04 < high and (high - low) / 2 == pytest.approx(
        1.96 * math.sqrt(0.2 - 0.0016) / math.sqrt(500), rel=0.05
    )


def test_holm_corrects_in_steps_and_keeps_the_order():
    assert holm([0.04, 0.001, 0.02, 0.9]) == pytest.approx([0.08, 0.004, 0.06, 0.9])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_kappa_of_hand_counted_judges():
    # 45 pairs: both yes 20, both no 15, five each way: observed 35/45, by chance (25² + 20²)/45².
    first = ["y"] * 25 + ["n"] * 20
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 5 + ["n"] * 15
    by_chance = (25**2 + 20**2) / 45**2
    assert cohen_kappa(first, second) == pytest.approx((35 / 45 - by_chance) / (1 - by_chance))
    assert cohen_kappa(["y", "n"], ["y", "n"]) == 1
    assert cohen_kappa(["y", "y"], ["y", "y"]) is None and cohen_kappa([], []) is None
    assert weighted_kappa([1, 5, 10], [1, 5, 10]) == 1
    assert weighted_kappa([1, 10], [10, 1]) == pytest.approx(-1)
    assert weighted_kappa([8, 6, 7, 9], [7, 6, 7, 9]) > cohen_kappa([8, 6, 7, 9], [7, 6, 7, 9])
    with pytest.raises(ValueError, match="wrong numbers of verdicts: got 1 and 2"):
        cohen_kappa(["y"], ["y", "n"])
    with pytest.raises(ValueError, match="wrong counts: got 3 of 2"):
        wilson_interval(3, 2)
