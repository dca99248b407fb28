"""The run's own account: a log without doubles, a status, numbers that are JSON."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.train.observers.metrics import (
    MetricsWriter,
    cut_log_back,
    memory_gib,
    progress_line,
    update_status,
    write_status,
)

ENTRY = {
    "iteration": 3,
    "lm_loss": 0.1 + 0.2,
    "grad_norm": 2.0,
    "learning_rate": 1e-3,
    "tokens_per_s_per_gpu": 1234.5,
    "step_time_s": 0.25,
    "eta_s": 61.0,
    "mfu": None,
    "loss_by_source": {"网页": 1.5},
}


def write_log(run_dir: Path, *lines: bytes) -> Path:
    path = run_dir / "log.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def line(iteration: int) -> bytes:
    return json.dumps({"iteration": iteration}).encode() + b"\n"


def test_the_log_is_cut_back_to_the_loaded_iteration(tmp_path: Path) -> None:
    path = write_log(tmp_path, line(1), line(2), line(3), line(4))
    assert cut_log_back(tmp_path, 2) == 2
    assert path.read_bytes() == line(1) + line(2)


def test_a_torn_last_line_goes_and_the_next_one_starts_a_new_line(tmp_path: Path) -> None:
    path = write_log(tmp_path, line(1), line(2), b'{"iteration": 3, "lm_lo')
    assert cut_log_back(tmp_path, 5) == 1
    assert path.read_bytes() == line(1) + line(2)
    path.write_bytes(line(1).rstrip())  # whole, but its end of line is missing
    assert cut_log_back(tmp_path, 5) == 0
    assert path.read_bytes() == line(1)


@pytest.mark.parametrize("garbage", [b"\x00\xff\n", b"[]\n", b"{}\n", b"\n", b'{"iteration": null}\n'])
def test_lines_that_are_no_entries_go(tmp_path: Path, garbage: bytes) -> None:
    path = write_log(tmp_path, line(1), garbage, line(2))
    assert cut_log_back(tmp_path, 2) == 1
    assert path.read_bytes() == line(1) + line(2)


def test_a_new_run_drops_the_log_of_one_that_never_saved(tmp_path: Path) -> None:
    assert cut_log_back(tmp_path, 0) == 0
    path = write_log(tmp_path, line(1), line(2))
    assert cut_log_back(tmp_path, 0) == 2
    assert path.read_bytes() == b""


def test_a_sound_log_is_not_touched(tmp_path: Path) -> None:
    path = write_log(tmp_path, line(1))
    before = path.stat().st_ino
    assert cut_log_back(tmp_path, 1) == 0
    assert path.stat().st_ino == before


def test_numbers_are_written_at_full_precision_and_not_finite_ones_as_null(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, tensorboard=False, wandb_project=None, config={})
    writer.write(ENTRY | {"validation_loss": {"a": float("inf")}, "grad_norm": float("nan")})
    writer.close()
    [read] = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert read["lm_loss"] == 0.1 + 0.2
    assert read["grad_norm"] is None and read["validation_loss"] == {"a": None} and read["mfu"] is None
    assert read["loss_by_source"] == {"网页": 1.5}


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, tensorboard=True, wandb_project=None, config={})
    writer.write(ENTRY)
    writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("lm_loss")[0].step == 3
    assert events.Scalars("loss_by_source/网页")[0].value == 1.5
    assert "mfu" not in events.Tags()["scalars"]


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    for first, last, loss in ((1, 6, 1.0), (3, 6, 2.0)):
        writer = MetricsWriter(tmp_path, tensorboard=True, wandb_project=None, config={}, iteration=first - 1)
        for iteration in range(first, last + 1):
            writer.write(ENTRY | {"iteration": iteration, "lm_loss": loss})
        writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("lm_loss")]
    assert shown == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_wandb_goes_on_in_the_page_of_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **options: begun.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    (tmp_path / "other").mkdir()
    for run_dir in (tmp_path, tmp_path, tmp_path / "other"):
        MetricsWriter(run_dir, tensorboard=False, wandb_project="mine", config={}).close()
    first, resumed, other = (options["id"] for options in begun)
    assert first == resumed != other and len(first) == 32
    assert all(options["resume"] == "allow" for options in begun)


def test_wandb_that_is_absent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wrong logging.wandb_project: got 'mine', but wandb is not installed"):
        MetricsWriter(tmp_path, tensorboard=False, wandb_project="mine", config={})


def test_status_says_state_reason_and_iteration(tmp_path: Path) -> None:
    write_status(tmp_path, "stopped", "file STOP", 7)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status == {"state": "stopped", "reason": "file STOP", "iteration": 7}


def test_status_follows_a_run_and_leaves_a_failure(tmp_path: Path) -> None:
    for state, expected in (("running", 9), ("failed", 7)):
        write_status(tmp_path, state, "", 7)
        update_status(tmp_path, 9)
        status = json.loads((tmp_path / "status.json").read_text())
        assert (status["state"], status["iteration"]) == (state, expected)


def test_one_line_for_a_person() -> None:
    assert progress_line(ENTRY, 9) == (
        "step 3/9  loss 0.3000  grad norm 2.000  lr 1.00e-03  1,234 tokens/s/rank  step 0.25 s  left 1:01"
    )


def test_memory_of_this_process() -> None:
    assert 0.01 < memory_gib(torch.device("cpu")) < 64
