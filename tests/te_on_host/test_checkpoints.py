"""A run begun with Transformer Engine's layers goes on without them, and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.te_on_host.conftest import STEPS, Outcome

pytestmark = pytest.mark.te


@pytest.mark.parametrize("begins", ["engine", "host"])
def test_the_other_path_resumes(
    begins: str,
    tmp_path: Path,
    sections: Callable[..., Any],
    on_host: Callable[..., Any],
    on_engine: Callable[..., Outcome],
) -> None:
    def engine_log(run_dir: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
        outcome = on_engine(run_dir, settings, fp32_layers=True)
        assert outcome.codes == [0], outcome.output[-4000:]
        return outcome.log

    first, second = (engine_log, on_host) if begins == "engine" else (on_host, engine_log)

    def settings(steps: int) -> dict[str, Any]:
        return sections("llama", training={"precision": "fp32", "train_iters": steps})

    whole = on_host(tmp_path / "whole", settings(STEPS))
    first(tmp_path / "run", settings(STEPS // 2))
    log = second(tmp_path / "run", settings(STEPS))
    assert [line["iteration"] for line in log] == list(range(1, STEPS + 1))
    for name, tolerance in (("lm_loss", 1e-5), ("grad_norm", 1e-4)):
        assert [line[name] for line in log] == pytest.approx([line[name] for line in whole], rel=tolerance), name
