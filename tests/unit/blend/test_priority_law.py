"""The order follows the law exactly: full enumeration, Wallenius prefixes, and the limit of many documents."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2, nchypergeom_wallenius

from megatron_huatuo.blend.schedule_counts import expected_drawn
from tests.unit.blend.orders import seeded_orders


def _probability(order: tuple[int, ...], sizes: list[int], priorities: list[float]) -> float:
    left, result = list(sizes), 1.0
    for source in order:
        weights = [count * priority for count, priority in zip(left, priorities, strict=True)]
        result *= weights[source] / sum(weights)
        left[source] -= 1
    return result


def _assert_fits(observed: list[int], expected: list[float]) -> None:
    """Chi-square at level 1e-4, cells below five expected put together."""
    pairs = sorted(zip(expected, observed, strict=True))
    cells: list[list[float]] = [[0.0, 0.0]]
    for want, got in pairs:
        if cells[-1][0] >= 5:
            cells.append([0.0, 0.0])
        cells[-1][0] += want
        cells[-1][1] += got
    statistic = sum((got - want) ** 2 / want for want, got in cells)
    assert statistic < chi2.ppf(1 - 1e-4, max(1, len(cells) - 1)), (statistic, len(cells))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "priorities"),
    [([3, 2], [2.0, 1.0]), ([3, 2], [1.0, 1.0]), ([2, 2, 1], [32.0, 5.0, 0.7]), ([1, 1, 1, 1], [1e3, 10.0, 3.0, 1.0])],
)
def test_every_order_of_tiny_sources_has_its_probability(sizes: list[int], priorities: list[float]) -> None:
    trials = 12_000
    found = Counter(tuple(order.tolist()) for order in seeded_orders(sizes, priorities, range(trials)))
    items = [source for source, count in enumerate(sizes) for _ in range(count)]
    possible = sorted(set(itertools.permutations(items)))
    assert set(found) <= set(possible)
    _assert_fits(
        [found[order] for order in possible], [trials * _probability(order, sizes, priorities) for order in possible]
    )


@pytest.mark.parametrize(
    ("sizes", "ratio"), [([60, 40], 2.0), ([300, 500], 7.5), ([400, 400], 1.0), ([30, 2000], 50.0), ([1500, 1000], 1.3)]
)
def test_counts_of_two_sources_follow_the_wallenius_distribution(sizes: list[int], ratio: float) -> None:
    """Sizes at which cells of the race hold shuffled and special documents side by side."""
    trials, total = 2500, sum(sizes)
    prefixes = [total // 20, total // 4, total // 2, 9 * total // 10]
    orders = np.stack(list(seeded_orders(sizes, [ratio, 1.0], range(trials))))
    for prefix in prefixes:
        first = (orders[:, :prefix] == 0).sum(axis=1)
        law = nchypergeom_wallenius(total, sizes[0], prefix, ratio)
        support = np.arange(max(0, prefix - sizes[1]), min(prefix, sizes[0]) + 1)
        _assert_fits(np.bincount(first - support[0], minlength=len(support)).tolist(), trials * law.pmf(support))


@pytest.mark.slow
def test_neighbouring_draws_are_as_independent_as_the_law_says() -> None:
    """Pairs of draws in the middle: given the counts before them, both follow the law (equal sizes, ratio 3)."""
    trials, sizes, ratio, place = 12_000, [40, 40], 3.0, 30
    found: Counter[tuple[int, int, int]] = Counter()
    for order in seeded_orders(sizes, [ratio, 1.0], range(trials)):
        found[int((order[:place] == 0).sum()), int(order[place]), int(order[place + 1])] += 1
    law = nchypergeom_wallenius(80, 40, place, ratio)
    observed, expected = [], []
    for before, a, b in itertools.product(range(place + 1), (0, 1), (0, 1)):
        left = [sizes[0] - before, sizes[1] - place + before]
        if min(left) < 2:
            continue
        chance = float(law.pmf(before)) * _probability((a, b), left, [ratio, 1.0])
        observed.append(found[before, a, b])
        expected.append(trials * chance)
    _assert_fits(observed, expected)


def test_counts_of_many_seeds_scatter_about_the_limit_as_they_should() -> None:
    """Mean z^2 over seeds, positions and sources is 1 (first-passage variance of independent races)."""
    sizes = [6400, 3600, 8200, 1600, 4000, 1400, 19000, 8400, 4200]
    priorities = [32.0, 32.0, 16.0, 16.0, 8.0, 8.0, 4.0, 4.0, 1.0]
    positions = (np.array([0.1, 0.3, 0.5, 0.7, 0.9]) * sum(sizes)).astype(int)
    limit = expected_drawn(np.array(sizes), np.array(priorities), positions)
    kept = 1 - limit / np.array(sizes)
    variance = np.array(sizes) * kept * (1 - kept)
    rates = np.array(sizes) * kept * np.array(priorities)
    share = rates / rates.sum(axis=1, keepdims=True)
    total_variance = variance.sum(axis=1, keepdims=True)
    scatter = variance * (1 - share) ** 2 + share**2 * (total_variance - variance)
    scores = []
    for order in seeded_orders(sizes, priorities, range(300)):
        counts = np.stack([np.bincount(order[:position], minlength=9) for position in positions])
        scores.append((counts - limit)[scatter > 50] / np.sqrt(scatter[scatter > 50]))
    z = np.stack(scores)
    assert abs(z.mean()) < 0.05
    assert 0.9 < (z**2).mean() < 1.1
