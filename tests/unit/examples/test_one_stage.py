"""The comparison of one stage with two: every arm trains on the same documents, and differences are paired by seed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "one_stage_vs_two_stage"


@pytest.fixture(scope="module")
def modules() -> Any:
    sys.path.insert(0, str(EXAMPLE))
    try:
        import comparison
        import experiment
        import training
    finally:
        sys.path.remove(str(EXAMPLE))
    return comparison, experiment, training


def test_every_arm_draws_every_document_equally_often(modules: Any) -> None:
    _, experiment, _ = modules
    for size in experiment.SIZES.values():
        drawn = []
        for arm in experiment.ARMS:
            sources = [
                (source["name"], source["epochs"])
                for stage in arm.stages
                for source in experiment.blend_sources(stage.blend, size, Path("index"))
            ]
            drawn.append(sorted(sources))
        assert all(each == drawn[0] for each in drawn) and len(drawn[0]) == 5


def test_priorities_are_those_of_the_recipe(modules: Any) -> None:
    _, experiment, _ = modules
    sources = experiment.blend_sources("priority", experiment.SIZES["toy"], Path("index"))
    assert [source["priority"] for source in sources] == [32.0, 16.0, 8.0, 4.0, 1.0]
    uniform = experiment.blend_sources("uniform", experiment.SIZES["toy"], Path("index"))
    assert {source["priority"] for source in uniform} == {1.0}


def result(arm: str, seed: int, loss: float, accuracy: float) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "held_out_loss": dict.fromkeys(("web", "literature", "encyclopedia", "books", "sft"), loss),
        "general_loss": 6.0,
        "exam_accuracy": accuracy,
        "worst_grad_norm": 2.0,
        "loss_spikes": 0,
        "training_loss": [3.0, 2.0, 1.0],
    }


def test_differences_are_paired_by_seed(modules: Any, tmp_path: Path) -> None:
    """Seeds differ by 1 in loss, arms by 0.5 within each seed: paired, the interval has no width."""
    comparison, _, _ = modules
    results = [result("two stages", seed, 5.0 + seed, 0.3) for seed in (1, 2, 3)]
    results += [result("one stage, recipe", seed, 4.5 + seed, 0.3 + 0.1 * seed) for seed in (1, 2, 3)]
    compared = comparison.compare(results)
    web = compared["one stage, recipe"]["loss web"]
    assert web["difference"] == pytest.approx(-0.5) and web["half_width"] == pytest.approx(0.0, abs=1e-12)
    exam = compared["one stage, recipe"]["exam accuracy"]
    assert exam["difference"] == pytest.approx(0.2)
    assert exam["half_width"] == pytest.approx(4.303 * 0.1 / 3**0.5)
    table = comparison.format_table(compared, {"general_loss": 7.0, "held_out_loss": {"web": 8.0}})
    assert "| loss web | 8.000 | 6.500 (**-0.500** ± 0.000) | 7.000 |" in table
    assert "| exam accuracy |  | 0.500 (+0.200 ± 0.248) | 0.300 |" in table
    comparison.plot(results, compared, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_no_interval(modules: Any) -> None:
    comparison, _, _ = modules
    compared = comparison.compare([result("two stages", 1, 5.0, 0.3), result("one stage, recipe", 1, 4.0, 0.3)])
    assert compared["one stage, recipe"]["loss sft"]["half_width"] is None
    assert "4.000 (-1.000 one seed)" in comparison.format_table(compared, {"general_loss": 1.0, "held_out_loss": {}})


def test_a_spike_stands_a_quarter_above_the_steps_before(modules: Any) -> None:
    _, _, training = modules
    assert training.count_spikes([4.0] * 20 + [5.1, 4.0, 5.0]) == 1
    assert training.count_spikes([4.0, 9.0]) == 0


def test_held_out_records_are_in_no_trained_source(modules: Any) -> None:
    _, experiment, _ = modules
    for name in (*experiment.SOURCES, "general"):
        trained = {record["id"] for record in experiment._records(name, "train", False)}
        held_out = {record["id"] for record in experiment._records(name, "heldout", False)}
        assert trained and held_out and not trained & held_out
        english = [record["id"] for record in experiment._records(name, "train", True)]
        assert english and all("-en-" in record for record in english)
