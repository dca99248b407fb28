"""The small exam of a run: as the exported model sits it, on any layout, and the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import GenerationSettings
from megatron_huatuo.parallel.host import enable_device
from megatron_huatuo.parallel.process_groups import initialize_process_groups
from megatron_huatuo.train.inputs import open_inputs, open_small_exam
from megatron_huatuo.train.rules import validate
from megatron_huatuo.train.start import start
from megatron_huatuo.train.train_config import ExamInTraining, TrainConfig
from tests.distributed.engine import read_log
from tests.distributed.runner import run_ranks

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DP2": (2, {}),
    "TP2": (2, {"tensor_model_parallel_size": 2}),
    "PP2 interleaved": (2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
    "TP2 PP2": (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen questions of different lengths and numbers of options; the last two ask for several letters."""
    options = {"A": "腹水", "B": "清蛋白", "C": "血电解质", "D": "肝活检", "E": "B超"}
    records = [
        {
            "id": f"q{k}",
            "question": ("哪项检查对诊断肝硬化有意义" if k % 2 else "Which test proves cirrhosis") + "？" * k,
            "option": dict(list(options.items())[: 2 + k % 4]),
            "answer": "AB"[k % 2],
            "question_type": "最佳选择题",
        }
        for k in range(12)
    ]
    records += [
        {"id": f"m{k}", "question": "有意义的有", "option": options, "answer": "AC", "question_type": "多项选择题"}
        for k in range(2)
    ]
    path = tmp_path_factory.mktemp("exam") / "exam.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def _sit(config: TrainConfig) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """({question: {letter: log-likelihood}}, {question: letter}) of the run's newest checkpoint, on this layout."""
    device = enable_device(config.runtime.device)
    rows = PackedRows(config.data.blend)
    validate(config, seq_length=rows.seq_length, num_rows=len(rows), world_size=torch.distributed.get_world_size())
    initialize_process_groups(config.parallel, device, config.runtime.distributed_timeout_minutes)
    inputs = open_inputs(config, rows)
    config.logging.exam.questions = ["read before"]
    run = start(config, rows, inputs, device)
    assert run.exam is not None
    found = run.exam.likelihoods(run.training, run.layout, device)
    by_letter = {
        q.id: dict(zip(q.letters, (found[option] for option in q.options), strict=True)) for q in run.exam.questions
    }
    return by_letter, dict(zip((q.id for q in run.exam.questions), run.exam.picked(found), strict=True))


def test_scores_are_those_of_the_exported_model_item_by_item(
    tmp_path: Path, questions: Path, configure, finish, small_model: Path
) -> None:
    sections = {
        "model": {"hf": str(small_model)},
        "logging": {"exam": ExamInTraining([str(questions)], interval=2, limit=13), "tensorboard": True},
        "training": {"train_iters": 5},
        "optimizer": {"lr": 1e-2},
    }
    config = configure(tmp_path / "run", **sections)
    output = finish(config)
    log = read_log(tmp_path / "run")
    assert [("exam" in line) for line in log] == [False, True, False, True, True], "at intervals and at the end"
    assert "exam of 11 questions, 2 left out" in output or "exam of 12 questions, 1 left out" in output
    assert log[1]["pauses_s"]["exam"] > 0

    export_checkpoint(tmp_path / "run", tmp_path / "hf")
    settings = ExamSettings(scoring="loglikelihood", limit=13)
    scores = run_exam(tmp_path / "hf", [questions], tmp_path / "out", settings, GenerationSettings(device="cpu"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "replies.jsonl").read_text("utf-8").splitlines()]
    assert log[-1]["exam"] == {
        "accuracy": scores["accuracy"],
        "correct": scores["correct"],
        "count": scores["count"],
        "chance": pytest.approx(scores["chance"]),
    }
    for layout, (ranks, parallel) in LAYOUTS.items():
        sat = run_ranks(ranks, _sit, configure(tmp_path / "run", parallel=parallel, **sections))
        for likelihoods, picked in sat:
            assert picked == {line["id"]: line["parsed"] for line in lines}, layout
            for line in lines:
                want = {letter: entry[0] for letter, entry in line["loglikelihood"].items()}
                assert likelihoods[line["id"]] == pytest.approx(want, abs=2e-5), (layout, line["id"])

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("exam/accuracy")]
    assert shown == [(line["iteration"], pytest.approx(line["exam"]["accuracy"])) for line in log if "exam" in line]


def test_a_resumed_run_has_the_exams_and_the_losses_of_one_that_was_not_disturbed(
    tmp_path: Path, questions: Path, configure, finish
) -> None:
    exam = {"logging": {"exam": ExamInTraining([str(questions)], interval=1)}}
    finish(configure(tmp_path / "whole", training={"train_iters": 5}, **exam))
    for last in (3, 5):
        finish(configure(tmp_path / "parts", training={"train_iters": last}, **exam))
    finish(configure(tmp_path / "without", training={"train_iters": 5}))
    whole, parts, without = (read_log(tmp_path / name) for name in ("whole", "parts", "without"))
    assert [line["exam"] for line in whole] == [line["exam"] for line in parts]
    assert [line["lm_loss"] for line in whole] == [line["lm_loss"] for line in parts]
    assert [line["lm_loss"] for line in whole] == [line["lm_loss"] for line in without]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"no questions: .*exam\.json"),
        ('[{"question": "?", "option": {"A": "x", "B": "y"}, "answer": "C"}]', r"wrong value of 'answer': got 'C'"),
        (
            '[{"question": "?", "option": {"A": "x", "B": "y"}, "answer": "AB"}]',
            r"no question for logging\.exam: all 1 ask for several letters or are longer than 256 tokens",
        ),
        (
            json.dumps([{"question": "哪项？" * 900, "option": {"A": "x", "B": "y"}, "answer": "A"}]),
            r"no question for logging\.exam: all 1 ask for several letters or are longer than 256 tokens",
        ),
    ],
)
def test_a_bad_question_file_is_refused_before_the_run(
    tmp_path: Path, sample_blend: Path, configure, content: str, message: str
) -> None:
    (tmp_path / "exam.json").write_text(content, encoding="utf-8")
    config = configure(tmp_path / "run", logging={"exam": ExamInTraining([str(tmp_path / "exam.json")])})
    with pytest.raises(DataError, match=message):
        open_small_exam(config, PackedRows(sample_blend))


def test_too_many_options_and_an_interval_without_questions_are_refused(
    tmp_path: Path, sample_blend: Path, configure
) -> None:
    records = [
        {"id": k, "question": f"{k}?", "option": {letter: letter for letter in "ABCDEFGH"}, "answer": "A"}
        for k in range(4096)
    ]
    path = tmp_path / "exam.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    rows = PackedRows(sample_blend)
    config = configure(tmp_path / "run", logging={"exam": ExamInTraining([str(path)], limit=None)})
    with pytest.raises(ConfigError, match=r"too many questions for logging\.exam: got 4096 with 32,768 options"):
        open_small_exam(config, rows)
    config.logging.exam = ExamInTraining(interval=3)
    with pytest.raises(ConfigError, match=r"logging\.exam\.interval has no effect without logging\.exam\.questions"):
        validate(config, seq_length=rows.seq_length, num_rows=len(rows), world_size=1)
