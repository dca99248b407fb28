"""How sure a score is: intervals, paired tests, agreement of judges. Exact or seeded, so that equal input gives equal output."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 10_000
_SEED = 20231122


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def wilson_interval(correct: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share: right also for few questions and for shares near 0 or 1, unlike p ± 2 se.

    With z the normal quantile: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927, JASA 22, 209-212).
    Raises: ValueError without a question.

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if count < 1 or not 0 <= correct <= count:
        raise ValueError(f"wrong counts: got {correct} of {count}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, square = correct / count, z * z / count
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    return Interval(0.0 if correct == 0 else low, 1.0 if correct == count else high)


def interval_of_mean_share(parts: Sequence[tuple[int, int]], weights: Sequence[float] | None = None) -> Interval:
    """Bootstrap interval of the mean of several shares: questions are drawn again within each part.

    parts: (correct, count) of each exam or subset. weights: of the parts, adding up to 1; equal ones by default. 10,000
    resamples; drawing n of n questions again with replacement gives a binomial number of right ones.
    """
    generator = np.random.default_rng(_SEED)
    means = np.zeros(_RESAMPLES)
    for (correct, count), weight in zip(parts, weights or [1 / len(parts)] * len(parts), strict=True):
        means += weight * generator.binomial(count, correct / count, _RESAMPLES) / count
    return _central(means)


def interval_of_mean(values: Sequence[float]) -> Interval:
    """Bootstrap interval of a mean, the values drawn again with replacement; 10,000 resamples. One value: itself twice."""
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(_SEED)
    means = np.empty(_RESAMPLES)
    step = max(1, 4_000_000 // max(1, len(data)))
    for start in range(0, _RESAMPLES, step):
        drawn = generator.integers(0, len(data), (min(step, _RESAMPLES - start), len(data)))
        means[start : start + step] = data[drawn].mean(axis=1)
    return _central(means)


def _central(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p-value of two models on the same questions.

    only_a, only_b: questions that only A, or only B, answered rightly. Under equal models each of them is a fair coin:
    twice the smaller binomial tail, at most 1 (McNemar 1947, exact form). Computed in logarithms, so any size will do.

    >>> round(mcnemar_exact(1, 9), 6), mcnemar_exact(3, 3), mcnemar_exact(0, 0)
    (0.021484, 1.0, 1.0)
    """
    total, smaller = only_a + only_b, min(only_a, only_b)
    if total == 0:
        return 1.0
    log_all = total * math.log(2)
    terms = (math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(smaller + 1))
    return min(1.0, 2 * math.fsum(math.exp(term - log_all) for term in terms))


def interval_of_paired_difference(only_a: int, only_b: int, count: int) -> Interval:
    """Bootstrap interval of A's accuracy minus B's on the same `count` questions, drawn again together; 10,000 resamples."""
    generator = np.random.default_rng(_SEED)
    shares = [only_a / count, only_b / count, max(0.0, 1 - (only_a + only_b) / count)]
    drawn = generator.multinomial(count, shares, _RESAMPLES)
    return _central((drawn[:, 0] - drawn[:, 1]) / count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values of several comparisons, in the order given (Holm 1979): valid without assumptions.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two judges beyond chance, 1 for full agreement, 0 for chance; None where it is not defined.

    (p_o - p_e) / (1 - p_e): share of equal verdicts against that of judges who keep their own shares of each verdict
    (Cohen 1960). Undefined for no pair, and where both always say the same one thing.

    >>> round(cohen_kappa(list("aabb"), list("aaab")), 3)
    0.5
    """
    if len(first) != len(second):
        raise ValueError(f"wrong numbers of verdicts: got {len(first)} and {len(second)}, need equal ones")
    if not first:
        return None
    count = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    by_chance = sum(list(first).count(kind) * list(second).count(kind) for kind in set(first)) / count**2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def weighted_kappa(first: Sequence[int], second: Sequence[int]) -> float | None:
    """Cohen's kappa of two raters on a scale, with quadratic weights: near ratings disagree little; None as for kappa."""
    if len(first) != len(second):
        raise ValueError(f"wrong numbers of ratings: got {len(first)} and {len(second)}, need equal ones")
    if not first:
        return None
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    by_chance = float(((a[:, None] - b[None, :]) ** 2).mean())
    return None if by_chance == 0 else 1 - float(((a - b) ** 2).mean()) / by_chance
