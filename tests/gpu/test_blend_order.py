"""The order drawn on a GPU: every byte as on the CPU. Needs a CUDA device and a kernel built with nvcc."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from megatron_huatuo.blend import order_plan
from megatron_huatuo.blend.order_draws import Draws, fresh_draws
from megatron_huatuo.blend.order_plan import OrderPlan

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's bytes would pass every test here."""

    def refuse(reason: str) -> None:
        pytest.fail(f"the GPU was not used: {reason}")

    monkeypatch.setattr(order_plan, "_warn_no_gpu", refuse)


def _assert_equal(draws: Draws, start: int = 0, stop: int | None = None) -> None:
    plan = OrderPlan(draws)
    last = plan.total if stop is None else stop
    wanted, found = plan.order(start, last), plan.order(start, last, device="cuda")
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(5))
def test_random_problems_have_the_cpu_bytes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sources = int(rng.choice([2, 5, 40, 300]))
    sizes = rng.integers(0, int(rng.choice([5, 1500, 90_000])), sources)
    priorities = 2.0 ** rng.integers(-3, 8, sources) * rng.choice([1.0, 1.3], sources)
    _assert_equal(fresh_draws(sizes, priorities, seed, rng.choice([1, 0.35, 2.5], sources)))


def test_recipe_sized_order_has_the_cpu_bytes() -> None:
    sizes = [640_621, 367_000, 827_000, 168_000, 398_000, 142_000, 1_950_000, 840_000, 142_248]
    draws = fresh_draws(sizes, [32, 32, 16, 16, 8, 8, 4, 4, 1], 3, [1, 1, 1, 1, 1, 1, 1, 1, 3])
    _assert_equal(draws)
    _assert_equal(draws, 1_234_567, 1_238_663)


def test_huge_ratios_and_single_sources_have_the_cpu_bytes() -> None:
    _assert_equal(fresh_draws([5000, 5000, 70], [1e300, 1.0, 1e-300], 3))
    _assert_equal(fresh_draws([300_000], [1.0], 3))


def test_beyond_2_to_32_documents_a_block_has_the_cpu_bytes() -> None:
    _assert_equal(fresh_draws([2**33 + 17, 50_000], [1.0, 1e5], 3), 40_000, 400_000)


def test_held_back_documents_have_the_cpu_bytes() -> None:
    draws = dataclasses.replace(
        fresh_draws([50, 3000], [2.0, 1.0], 6),
        num_draws=np.array([70, 2500]),
        first_draw=np.array([20, 400]),
        held_back=(np.array([7, 3]), np.array([2999])),
    )
    _assert_equal(draws)
