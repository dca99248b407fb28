"""docs/scaling.md holds what the plan says now."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scaling import RECIPE_ROWS, ROWS_PER_GPU, best_plan, table_rows
from megatron_huatuo.plan.layouts import layout_name

DOCUMENT = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("backbone", "gpu", "nodes", "strong"),
    [("7B", "a100-80gb", 1, True), ("13B", "h100", 16, True), ("34B", "h100", 8, False)],
)
def test_tables_are_what_the_plan_says(backbone: str, gpu: str, nodes: int, strong: bool) -> None:
    """Three of the rows; `python -m benchmarks.scaling --write docs/scaling.md` writes them all."""
    batch = RECIPE_ROWS if strong else 8 * nodes * ROWS_PER_GPU
    plan = best_plan(backbone, gpu, nodes, batch).plan
    assert plan is not None
    cells = [
        f"| {backbone} | {8 * nodes} × {gpu} | {layout_name(plan.config, 8 * nodes)} |",
        f"| {plan.step_time_s:.3g} | {plan.tokens_per_s_per_gpu:,.0f} | {plan.mfu:.0%} |",
    ]
    assert any(all(cell in line for cell in cells) for line in DOCUMENT.splitlines())


def test_a_model_that_fits_nowhere_is_said() -> None:
    scaled = best_plan("34B", "a100-80gb", 1, RECIPE_ROWS)
    assert scaled.plan is None
    (line,) = table_rows([scaled])
    assert "no layout fits" in line and line in DOCUMENT


@pytest.mark.slow
def test_efficiency_falls_with_more_gpus_for_the_same_batch() -> None:
    rates = [best_plan("7B", "h100", nodes, RECIPE_ROWS).plan for nodes in (4, 8, 16)]
    speeds = [plan.tokens_per_s_per_gpu for plan in rates if plan is not None]
    assert len(speeds) == 3 and speeds == sorted(speeds, reverse=True)
