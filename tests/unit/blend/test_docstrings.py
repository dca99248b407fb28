"""The worked examples of the docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["blend_build", "order_draws", "row_packing", "order_plan"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"megatron_huatuo.blend.{name}"))
    assert result.attempted > 0 and result.failed == 0
