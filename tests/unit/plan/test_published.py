"""The plan against published runs: half of them fitted the constants, the other half only tests them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.published import error_summary, fit, format_runs, load_runs, write_between_markers
from megatron_huatuo.config import read_yaml
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.plan.efficiency import RANGES, Constants

ROOT = Path(__file__).parents[3]
RUNS = load_runs()


@pytest.mark.parametrize("half", ["fit", "test"])
def test_predictions_of_each_half_are_close_to_what_was_published(half: str) -> None:
    chosen = [run for run in RUNS if run.half == half]
    median, worst = error_summary(chosen)
    assert len(chosen) >= 20
    assert median <= 0.10 and worst <= 0.20


def test_rows_cover_what_users_plan() -> None:
    rows = [run.content for run in RUNS]
    assert {row["gpu"] for row in rows} >= {"a100-40gb", "a100-80gb", "h100", "h200", "b200"}
    assert {row.get("precision", "bf16") for row in rows} == {"bf16", "fp8"}
    assert min(row["gpus"] for row in rows) == 1 and max(row["gpus"] for row in rows) == 2048
    assert {run.half for run in RUNS if run.content.get("tensor_parallel")} == {"fit", "test"}


@pytest.mark.slow
def test_constants_are_those_that_the_first_half_gives() -> None:
    fitted = fit([run for run in RUNS if run.half == "fit"])
    assert {name: getattr(fitted, name) for name in RANGES} == {name: getattr(Constants(), name) for name in RANGES}


def test_a_run_on_more_gpus_stands_on_the_side_of_its_smaller_twin() -> None:
    halves: dict[str, set[str]] = {}
    for run in RUNS:
        if run.content["source"] == "dgxc":
            key = f"{run.content['model']} {run.content.get('precision')} {run.layout}"
            halves.setdefault(key, set()).add(run.half)
    assert halves and all(len(sides) == 1 for sides in halves.values())


def test_every_row_has_a_source_and_every_figure_left_out_a_reason() -> None:
    content = read_yaml(ROOT / "docs" / "published_runs.yaml")
    assert {run.content["source"] for run in RUNS} == set(content["sources"])
    assert all(source["address"].startswith("https://") and source["known"] for source in content["sources"].values())
    assert all(entry["what"] and entry["why"] for entry in content["not_compared"])


def test_predictions_notice_a_wrong_constant() -> None:
    """The test could fail: no loss by overlap at all, or attention at half its speed, leaves the bounds."""
    for wrong in (Constants(overlap_loss=0.0), Constants(hopper_products=0.6), Constants(eager_factor=1.0)):
        assert error_summary(RUNS, wrong)[1] > 0.20


def test_documents_hold_the_comparison_as_it_is() -> None:
    """Written by `python -m benchmarks.published --write docs/performance.md`."""
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    between = re.search("<!-- published runs: begin -->\n(.*?)\n<!-- published runs: end -->", document, re.DOTALL)
    assert between is not None and between[1] == format_runs(RUNS)


def test_a_document_without_a_place_for_the_table_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- published runs: begin -->\nold\n<!-- published runs: end -->\nafter\n")
    write_between_markers(document, "published runs", "new")
    assert document.read_text() == "before\n<!-- published runs: begin -->\nnew\n<!-- published runs: end -->\nafter\n"
    with pytest.raises(ConfigError, match=r"document has no place for the table: need <!-- other: begin -->"):
        write_between_markers(document, "other", "new")
