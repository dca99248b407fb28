"""One answer, any block of it alone, every document once; and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo import _C
from megatron_huatuo.blend import priority_order
from megatron_huatuo.blend.order_draws import Draws, draws_of_epochs, fresh_draws
from megatron_huatuo.blend.order_plan import OrderPlan
from megatron_huatuo.blend.order_reference import Permutation, ReferencePlan
from megatron_huatuo.errors import ConfigError
from tests.unit.blend.orders import RECIPE_EPOCHS, RECIPE_PRIORITIES, RECIPE_SIZES


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[float], list[float], int]:
    sources = draw(st.integers(1, 7))
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 17, 300, 1024, 1025, 2500]), min_size=sources, max_size=sources))
    weight = st.one_of(st.sampled_from([1.0, 2.0, 32.0]), st.floats(1e-3, 1e3), st.floats(1e-300, 1e300))
    priorities = draw(st.lists(weight, min_size=sources, max_size=sources))
    epochs = draw(st.lists(st.sampled_from([0, 0.35, 1, 1, 2.5]), min_size=sources, max_size=sources))
    return sizes, priorities, epochs, draw(st.integers(0, 2**64 - 1))


@pytest.mark.slow
@given(problems())
@settings(max_examples=60, deadline=None)
def test_kernel_equals_the_python_reference_byte_for_byte(problem: tuple[Any, ...]) -> None:
    sizes, priorities, epochs, seed = problem
    draws = fresh_draws(sizes, priorities, seed, epochs)
    source, document = OrderPlan(draws).order(0, draws.total)
    wanted_source, wanted_document = ReferencePlan(draws).order(0, draws.total)
    np.testing.assert_array_equal(source, wanted_source)
    np.testing.assert_array_equal(document, wanted_document)


def test_extreme_ratios_equal_the_reference() -> None:
    """Two thousand levels lie between these priorities."""
    draws = fresh_draws([40, 300, 3], [1.7e300, 1.1, 2.3e-300], 8)
    source, document = OrderPlan(draws).order(0, draws.total)
    wanted_source, wanted_document = ReferencePlan(draws).order(0, draws.total)
    np.testing.assert_array_equal(source, wanted_source)
    np.testing.assert_array_equal(document, wanted_document)


@pytest.mark.slow
def test_many_sources_equal_the_reference() -> None:
    """Beyond 128 sources cells are larger and hold more special documents."""
    rng = np.random.default_rng(0)
    draws = fresh_draws(rng.integers(1, 60, 400), 2.0 ** rng.integers(0, 6, 400), 3)
    source, document = OrderPlan(draws).order(0, draws.total)
    wanted_source, wanted_document = ReferencePlan(draws).order(0, draws.total)
    assert source.dtype == np.uint16
    np.testing.assert_array_equal(source, wanted_source)
    np.testing.assert_array_equal(document, wanted_document)


BIG = ([3_000_000, 40_000, 900_000, 700], [4.0, 3.7, 1.0, 0.1], [1, 2.5, 0.35, 40])


def many_sources() -> Draws:
    """700 sources, most of whose shares of a cell are small: their splits and documents are made in groups."""
    rng = np.random.default_rng(5)
    sizes = rng.choice([0, 3, 40, 700, 1024, 1025, 2500, 9000], 700)
    return fresh_draws(
        sizes, 2.0 ** rng.integers(0, 6, 700) * rng.choice([1.0, 1.3], 700), 17, rng.choice([1, 2.5], 700)
    )


RECORDED_SHA256 = {
    "nine sources": "c4fd1f0821622c54ac05c81ce5e4240758201fd4af20f8a4346020f499f7512d",
    "700 sources": "5765a4b7011737a7f188b81b09f6501645a2c66e7e74fdd7a86b6b79c5d1caf4",
    "2^32 documents": "b8051a115e8d3b14981439e2ab920e184696aa74067b77887abccdd3f5046fd6",
}
"""Of the source and document bytes, as version 1 of the order first gave them."""


@pytest.mark.slow
@pytest.mark.parametrize("problem", RECORDED_SHA256)
def test_large_orders_keep_their_recorded_bytes(problem: str) -> None:
    draws, start = {
        "nine sources": (fresh_draws(RECIPE_SIZES, RECIPE_PRIORITIES, 2024, RECIPE_EPOCHS), 0),
        "700 sources": (many_sources(), 0),
        "2^32 documents": (fresh_draws([2**32 + 17, *[40_000] * 99], [1.0, *[3e4] * 99], 5), 3_000_000),
    }[problem]
    order = OrderPlan(draws).order(start, min(draws.total, start + 3_000_000))
    assert hashlib.sha256(b"".join(part.tobytes() for part in order)).hexdigest() == RECORDED_SHA256[problem]


@pytest.mark.parametrize("num_threads", [1, 2, 3, 4])
def test_threads_do_not_change_a_byte(num_threads: int) -> None:
    draws = fresh_draws(BIG[0], BIG[1], 11, BIG[2])
    wanted = OrderPlan(draws, num_threads=1).order(0, draws.total, num_threads=1)
    found = OrderPlan(draws, num_threads=num_threads).order(0, draws.total, num_threads=num_threads)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("problem", [fresh_draws(BIG[0], BIG[1], 12, BIG[2]), many_sources()], ids=["4", "700"])
def test_instruction_sets_do_not_change_a_byte(name: str, problem: Draws) -> None:
    draws = problem
    before = _C.vector_kernels()
    wanted = OrderPlan(draws).order(0, draws.total)
    if not _C.use_vector_kernels(name):
        pytest.skip(f"this processor has no {name}")
    try:
        found = OrderPlan(draws).order(0, draws.total)
    finally:
        _C.use_vector_kernels(before)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("draws", [fresh_draws(BIG[0], BIG[1], 13, BIG[2]), many_sources()], ids=["4", "700"])
def test_any_block_alone_is_a_slice_of_the_whole(draws: Draws) -> None:
    plan = OrderPlan(draws)
    source, document = plan.order(0, draws.total)
    rng = np.random.default_rng(0)
    starts = [0, draws.total - 1, draws.total, *rng.integers(0, draws.total, 40).tolist()]
    for start in starts:
        stop = min(draws.total, start + int(rng.choice([0, 1, 4096, 200_000])))
        block = plan.order(start, stop)
        assert np.array_equal(block[0], source[start:stop])
        assert np.array_equal(block[1], document[start:stop])
        assert np.array_equal(plan.counts_before(start), np.bincount(source[:start], minlength=draws.num_sources))


def test_every_document_comes_once_an_epoch_and_epochs_follow_each_other() -> None:
    sizes, epochs = [5000, 700, 1, 1500], [1, 3, 4, 2.35]
    source, document = priority_order(sizes, [8.0, 4.0, 2.0, 1.0], 5, epochs=epochs)
    for number, (size, epoch) in enumerate(zip(sizes, epochs, strict=True)):
        mine = document[source == number]
        assert len(mine) == draws_of_epochs(size, epoch)
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            assert len(np.unique(part)) == len(part)
            assert part.max(initial=0) < size


@pytest.mark.parametrize(
    ("size", "epochs", "draws"),
    [(20, 0.35, 7), (10, 3, 30), (3, 1.5, 5), (1000, 0.001, 1), (10, 0, 0), (7, 2.999999, 21), (40, 0.07, 3)],
)
def test_fractional_epochs_draw_the_rounded_fraction(size: int, epochs: float, draws: int) -> None:
    assert draws_of_epochs(size, epochs) == draws


def test_more_than_2_to_24_draws_are_each_drawn_once() -> None:
    sizes = [2**24 + 5000, 300_000]
    source, document = priority_order(sizes, [1.0, 2.0], 7)
    assert len(source) == sum(sizes)
    for number, size in enumerate(sizes):
        seen = np.zeros(size, dtype=bool)
        seen[document[source == number]] = True
        assert seen.all() and (source == number).sum() == size


@pytest.mark.slow
def test_beyond_2_to_31_draws_a_block_is_made_without_the_rest() -> None:
    sizes = [2**31 + 12_345, 50_000, 2**30]
    draws = fresh_draws(sizes, [1.0, 1.0, 3.0], 9)
    plan = OrderPlan(draws)
    assert plan.nbytes < 200e6
    start = 2**31 + 2**29
    source, document = plan.order(start, start + 4096)
    assert (document > 2**30).any() and (document < np.array(sizes)[source]).all()
    before, after = plan.counts_before(start), plan.counts_before(start + 4096)
    np.testing.assert_array_equal(after - before, np.bincount(source, minlength=3))
    again = plan.order(start + 1000, start + 5000)
    assert np.array_equal(again[0][:3096], source[1000:]) and np.array_equal(again[1][:3096], document[1000:])
    assert plan.counts_before(draws.total).tolist() == sizes


def test_permutation_of_a_source_beyond_2_to_32_documents_never_repeats() -> None:
    draws = fresh_draws([2**33 + 17], [1.0], 1)
    _, document = OrderPlan(draws).order(0, 1_000_000)
    assert len(np.unique(document)) == 1_000_000 and document.max() > 2**32
    reference = Permutation(2**33 + 17, 1, 0, 0)
    assert document[:50].tolist() == [reference[place] for place in range(50)]


@pytest.mark.parametrize("ratio", [1e12, 1e300])
def test_huge_priority_ratios_draw_one_source_before_the_other(ratio: float) -> None:
    source, document = priority_order([5000, 5000], [ratio, ratio / ratio], 3)
    assert source[:5000].max() == 0 and source[5000:].min() == 1
    assert sorted(document[:5000].tolist()) == list(range(5000))
    tiny, _ = priority_order([50, 50], [1e-300, 1e-308], 3)
    assert tiny[:50].max() == 0


def test_one_source_is_its_own_permutation() -> None:
    source, document = priority_order([3000], [7.0], 3)
    assert not source.any() and sorted(document.tolist()) == list(range(3000))


def test_empty_sources_are_passed_over() -> None:
    source, _ = priority_order([0, 4, 0], [1.0, 2.0, 3.0], 3)
    assert source.tolist() == [1, 1, 1, 1]
    nothing = priority_order([0, 0], [1.0, 2.0], 3)
    assert nothing[0].shape == (0,) and nothing[1].shape == (0,)


def test_a_thousand_sources_are_all_drawn() -> None:
    sizes = np.arange(1000) % 7 * 10
    source, _ = priority_order(sizes, np.linspace(0.5, 40, 1000), 3)
    assert source.dtype == np.uint16
    np.testing.assert_array_equal(np.bincount(source, minlength=1000), sizes)


def test_seed_changes_the_order_and_nothing_else_does() -> None:
    first = priority_order([500, 500], [2.0, 1.0], 1)
    assert not np.array_equal(first[0], priority_order([500, 500], [2.0, 1.0], 2)[0])
    assert np.array_equal(first[1], priority_order([500, 500], [2.0, 1.0], 1)[1])
    scaled = priority_order([500, 500], [2048.0, 1024.0], 1)
    assert np.array_equal(first[0], scaled[0])  # priorities count up to a common factor


def test_order_version_1_keeps_its_bytes() -> None:
    """Recorded: a change here needs a new ORDER_VERSION."""
    source, document = priority_order([6, 4, 5000], [8.0, 1.5, 0.01], 2024, epochs=[1, 2, 0.002])
    assert source.tolist() == RECORDED_SOURCE
    assert document.tolist() == RECORDED_DOCUMENT


RECORDED_SOURCE = [0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
RECORDED_DOCUMENT = [1, 0, 1, 0, 5, 2, 3, 4, 3, 2, 3, 1, 2, 0, 4878, 210, 4714, 4355, 3225, 3381, 1948, 119, 2470, 3698]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_priority_is_refused_with_source_and_value(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"wrong priority of source 1: got {value}, need a finite number > 0"):
        priority_order([3, 3], [1.0, value], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, -1], [1.0, 1.0], 1), r"wrong num_documents of source 1: got -1, need a whole number >= 0"),
        (([3, 1.5], [1.0, 1.0], 1), r"wrong num_documents of source 1: got 1.5, need a whole number"),
        (([], [], 1), r"wrong number of sources: got 0, need 1 to 65535"),
        (([3, 3], [1.0], 1), r"wrong number of priorities: got 1, need one for each of 2 sources"),
        (([[3]], [1.0], 1), r"wrong num_documents of source 0: got \[3\], need a number"),
        ((3, [1.0], 1), r"wrong num_documents: got 3, need one number a source"),
        (("33", [1.0, 1.0], 1), r"wrong num_documents: got '33', need one number a source"),
        (([3, None], [1.0, 1.0], 1), r"wrong num_documents of source 1: got None, need a number"),
        (([3, True], [1.0, 1.0], 1), r"wrong num_documents of source 1: got True, need a number"),
        (([3, math.inf], [1.0, 1.0], 1), r"wrong num_documents of source 1: got inf, need a whole number >= 0"),
        (([3, 2**63], [1.0, 1.0], 1), r"wrong num_documents of source 1: got 9223372036854775808"),
        ((np.array([True, False]), [1.0, 1.0], 1), r"wrong num_documents of source 0: got True, need a number"),
        (([3, 3], [1.0, "2"], 1), r"wrong priority of source 1: got '2', need a number"),
        (([3, 3], [1.0, None], 1), r"wrong priority of source 1: got None, need a number"),
        (([3, 3], [False, 1.0], 1), r"wrong priority of source 0: got False, need a number"),
        (([3, 3], [1.0, 10**400], 1), r"wrong priority of source 1: got 10+, need a finite number > 0"),
        (([3, 3], None, 1), r"wrong priority: got None, need one number a source"),
        (([3], [1.0], "1"), r"wrong seed: got '1', need a whole number"),
        (([3], [1.0], True), r"wrong seed: got True, need a whole number"),
        (([3], [1.0], -1), r"wrong seed: got -1, need a whole number from 0 to 2\^64 - 1"),
        (([3], [1.0], 2**64), r"wrong seed: got 18446744073709551616"),
        (([3], [1.0], 1.5), r"wrong seed: got 1.5"),
        (([2**37 + 1], [1.0], 1), r"too many draws of source 0: got 137438953473"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        priority_order(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": [1]}, r"wrong number of epochs: got 1, need one for each of 2 sources"),
        ({"epochs": [1, -1]}, r"wrong epochs of source 1: got -1, need a finite number >= 0"),
        ({"epochs": [1, math.nan]}, r"wrong epochs of source 1: got nan"),
        ({"epochs": [1, "2"]}, r"wrong epochs of source 1: got '2', need a number"),
        ({"epochs": [1, True]}, r"wrong epochs of source 1: got True, need a number"),
        ({"epochs": 2}, r"wrong epochs: got 2, need one number a source"),
        ({"start": 0.5}, r"wrong start: got 0.5, need a whole number"),
        ({"stop": "6"}, r"wrong stop: got '6', need a whole number"),
        ({"stop": True}, r"wrong stop: got True, need a whole number"),
        ({"start": -1}, r"wrong range of draws: got \[-1, 6\), need 0 <= start <= stop <= 6"),
        ({"stop": 7}, r"wrong range of draws: got \[0, 7\)"),
        ({"start": 4, "stop": 2}, r"wrong range of draws: got \[4, 2\)"),
        ({"num_threads": 0}, r"wrong num_threads: got 0, need a whole number from 1 to 1024"),
        ({"num_threads": 2.5}, r"wrong num_threads: got 2.5, need a whole number from 1 to 1024"),
        ({"num_threads": "2"}, r"wrong num_threads: got '2', need a whole number"),
        ({"num_threads": True}, r"wrong num_threads: got True, need a whole number"),
        ({"num_threads": 2**40}, r"wrong num_threads: got 1099511627776, need a whole number from 1 to 1024"),
        ({"device": "tpu"}, r"wrong device: got 'tpu', need 'cpu' or 'cuda'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        priority_order([3, 3], [1.0, 2.0], 1, **options)


def test_without_a_gpu_cuda_gives_the_cpu_bytes() -> None:
    wanted = priority_order([300, 200], [2.0, 1.0], 4)
    found = priority_order([300, 200], [2.0, 1.0], 4, device="cuda")
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_held_back_documents_come_first_and_the_sequence_goes_on() -> None:
    """The pieces that re-planning is made of, kernel and reference alike."""
    draws = dataclasses.replace(
        fresh_draws([50, 3000], [2.0, 1.0], 6),
        num_draws=np.array([70, 2500]),
        first_draw=np.array([20, 400]),
        held_back=(np.array([7, 3]), np.array([2999])),
    )
    source, document = OrderPlan(draws).order(0, draws.total)
    wanted_source, wanted_document = ReferencePlan(draws).order(0, draws.total)
    np.testing.assert_array_equal(source, wanted_source)
    np.testing.assert_array_equal(document, wanted_document)
    assert document[source == 0][:2].tolist() == [7, 3] and document[source == 1][0] == 2999
