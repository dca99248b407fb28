"""Where the kernel is not built, Python does its work: same bytes, one warning, and a limit instead of hours."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import megatron_huatuo
from megatron_huatuo import _ext
from megatron_huatuo.blend import order_plan, row_packing
from megatron_huatuo.blend.order_draws import fresh_draws
from megatron_huatuo.blend.order_plan import OrderPlan
from megatron_huatuo.blend.row_packing import RowPacker, pack_rows
from megatron_huatuo.errors import ConfigError


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (order_plan, row_packing):
        monkeypatch.setattr(module, "load_kernel", lambda: None)


def test_reference_takes_over_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    draws = fresh_draws([900, 300], [3.0, 1.0], 5, [1, 2])
    lengths = np.random.default_rng(0).integers(1, 50, 500)
    wanted, packed = OrderPlan(draws).order(100, 1200), pack_rows(lengths, 64, 16)
    request.getfixturevalue("no_kernel")
    plan = OrderPlan(draws)
    found = plan.order(100, 1200)
    for ours, theirs in zip((*found, *pack_rows(lengths, 64, 16)), (*wanted, *packed), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert plan.counts_before(1500).tolist() == [900, 600]
    packer = RowPacker(64, 16)
    parts = [packer.add(lengths[:200]), packer.add(lengths[200:]), packer.finish()]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), packed[0])


@pytest.mark.usefixtures("no_kernel")
def test_long_orders_without_the_kernel_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"too many draws for the Python reference: got 3000000, need at most 2000000"
    ):
        OrderPlan(fresh_draws([3_000_000], [1.0], 5))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "the compiled kernel is missing"),
        (SimpleNamespace(__file__="/there/_C.so"), "the compiled kernel is older than this version (/there/_C.so)"),
    ],
)
def test_missing_or_old_kernel_is_said_once(monkeypatch: pytest.MonkeyPatch, module: Any, message: str) -> None:
    said: list[str] = []
    logger = _ext.get_logger("megatron_huatuo._ext")
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(megatron_huatuo, "_C", module, raising=False)
    monkeypatch.setitem(sys.modules, "megatron_huatuo._C", module)
    _ext.load_kernel.cache_clear()
    try:
        assert _ext.load_kernel() is None and _ext.load_kernel() is None
    finally:
        _ext.load_kernel.cache_clear()
    assert len(said) == 1 and message in said[0] and "build_ext --inplace" in said[0]
