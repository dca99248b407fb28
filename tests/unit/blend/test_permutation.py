"""The order inside a source: uniform where it can be counted, without memory where it is large."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2

from megatron_huatuo.blend.order_draws import fresh_draws
from megatron_huatuo.blend.order_plan import OrderPlan
from megatron_huatuo.blend.order_reference import Permutation


def _permutations(size: int, epochs: int, seed: int = 1) -> np.ndarray:
    """[epochs, size]: every epoch is a permutation of its own."""
    _, document = OrderPlan(fresh_draws([size], [1.0], seed, [epochs]), num_threads=1).order(0, size * epochs)
    return document.reshape(epochs, size).astype(np.int64)


def _chi_square(counts: np.ndarray) -> tuple[float, float]:
    """Statistic against equal counts, and its quantile at 1e-4."""
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum()), float(chi2.ppf(1 - 1e-4, counts.size - 1))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_of_a_tiny_source_is_equally_likely(size: int) -> None:
    found = Counter(map(tuple, _permutations(size, 40_000).tolist()))
    counts = np.array([found[order] for order in itertools.permutations(range(size))])
    statistic, most = _chi_square(counts)
    assert statistic < most


@pytest.mark.parametrize("size", [37, 1024, 1025, 1030, 2000, 65_537])
def test_places_and_neighbours_are_uniform(size: int) -> None:
    """Place against document, and the step between neighbours, in 32 bins each, on both sides of the stored size."""
    epochs = max(2, 400_000 // size)
    orders = _permutations(size, epochs)
    places = np.broadcast_to(np.arange(size), orders.shape)
    bins = min(32, size // 8)
    even = size // bins * bins  # bins of equal width
    for pairs in (
        (places, orders),
        (places[:, :-1], np.diff(orders, axis=1) % size),
        (orders[:, :-1], np.diff(orders, axis=1) % size),
        (orders[:, :-7], (orders[:, 7:] - orders[:, :-7]) % size),
    ):
        inside = (pairs[0] < even) & (pairs[1] < even)
        cells = pairs[0][inside] * bins // even * bins + pairs[1][inside] * bins // even
        counts = np.bincount(cells, minlength=bins * bins).reshape(bins, bins).astype(float)
        rows, columns = counts.sum(axis=1, keepdims=True), counts.sum(axis=0, keepdims=True)
        expected = rows * columns / counts.sum()  # a step of 0 never occurs, so the margins are not equal
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < chi2.ppf(1 - 1e-4, (bins - 1) ** 2)


@pytest.mark.parametrize("size", [1025, 5000, 65_536, 65_537, 1_000_003])
def test_network_is_a_permutation_and_the_reference_agrees(size: int) -> None:
    order = _permutations(size, 1)[0]
    assert np.array_equal(np.sort(order), np.arange(size))
    reference = Permutation(size, 1, 0, 0)
    places = [0, 1, 5, size // 2, size - 1]
    assert [reference[place] for place in places] == order[places].tolist()


def test_sources_and_epochs_have_their_own_permutations() -> None:
    source, document = OrderPlan(fresh_draws([2000, 2000], [1.0, 1.0], 1, [2, 2])).order(0, 8000)
    orders = [document[source == number][start : start + 2000] for number in (0, 1) for start in (0, 2000)]
    for first, second in itertools.combinations(orders, 2):
        assert (first == second).sum() < 12  # one match is expected
        assert abs(np.corrcoef(first.astype(float), second.astype(float))[0, 1]) < 0.1


def test_fraction_of_an_epoch_is_drawn_without_bias() -> None:
    """Every document is equally likely to be among the 0.35 that share once."""
    size, trials = 1100, 600
    drawn = np.zeros(size)
    for seed in range(trials):
        plan = OrderPlan(fresh_draws([size], [1.0], seed, [0.35]), num_threads=1)
        drawn[plan.order(0, plan.total, num_threads=1)[1]] += 1
    assert drawn.sum() == trials * 385
    statistic = ((drawn - trials * 0.35) ** 2 / (trials * 0.35 * 0.65)).sum()
    assert statistic < chi2.ppf(1 - 1e-4, size - 1)
