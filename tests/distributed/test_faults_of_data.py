"""Data and settings that changed under a run, and numbers that are not finite."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_replan import replan_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.storage.run_files import complete_checkpoints
from tests.conftest import DATA
from tests.distributed.engine import launch_rank, outcome, read_log, read_status
from tests.distributed.runner import started_ranks


def blend_settings(sample_blend: Path, seed: int = 5) -> dict[str, Any]:
    sources = [
        {"name": name, "path_prefix": str(sample_blend.parent / "index" / name), "level": level}
        for level, name in enumerate(("sft", "books", "web"))
    ]
    return {"seq_length": 256, "seed": seed, "packing": {"window": 16}, "sources": sources}


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory, configure, finish) -> Path:
    directory = tmp_path_factory.mktemp("three")
    finish(configure(directory, training={"train_iters": 3}))
    return directory


@pytest.fixture
def run_dir(three_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three_steps, tmp_path / "run"))


def other_blend(sample_blend: Path, directory: Path, change: str) -> Path:
    """The sample's blend with another order, other words in one source, or another tokenizer."""
    if change == "order":
        settings = blend_settings(sample_blend, seed=6)
    else:
        tokenizer = sample_blend.parent / "tokenizer"
        if change == "tokenizer":
            tokenizer = directory / "tokenizer"
            train_tokenizer([DATA / "sft.jsonl"], tokenizer, 1200)
        sft = directory / "sft.jsonl"
        text = (DATA / "sft.jsonl").read_text("utf-8")
        sft.write_text(text.replace("。", "！", 1) if change == "words" else text, "utf-8")
        build_index([sft], directory / "sft", tokenizer, workers=1)
        settings = blend_settings(sample_blend)
        settings["sources"] = [{"name": "sft", "path_prefix": str(directory / "sft"), "level": 0}]
    return build_blend(parse_blend_config(settings, "other"), directory / "blend")


@pytest.mark.parametrize(
    ("change", "named"), [("order", "blend"), ("words", "blend"), ("tokenizer", "blend and tokenizer")]
)
def test_other_data_is_refused_with_both_fingerprints_unless_a_flag_allows_it(
    change: str, named: str, run_dir: Path, tmp_path: Path, sample_blend: Path, configure, finish
) -> None:
    blend = other_blend(sample_blend, tmp_path, change)
    before = PackedRows(sample_blend).fingerprint
    config = configure(run_dir, data={"blend": str(blend)}, training={"train_iters": 4})
    with started_ranks(2, launch_rank, config) as ranks:
        assert ranks.wait(60) == [1, 1]
        output = ranks.output(0)
    assert f"error: {named} changed since iter_0000003: " in output
    assert f"blend got fingerprint {PackedRows(blend).fingerprint}, need {before}" in output
    assert len(read_log(run_dir)) == 3
    config.checkpoint.allow_changed = named.split(" and ")
    finish(config)
    assert [line["iteration"] for line in read_log(run_dir)] == [1, 2, 3, 4]


def test_another_batch_size_goes_on_at_the_same_row_when_a_flag_allows_it(run_dir: Path, configure, finish) -> None:
    """12 of 96 rows are consumed; the other 84 take 11 batches of 8."""
    config = configure(
        run_dir, training={"train_iters": None, "global_batch_size": 8}, checkpoint={"save_interval": None}
    )
    with started_ranks(2, launch_rank, config) as ranks:
        assert ranks.wait(60) == [1, 1]
        assert "config changed since iter_0000003" in ranks.output(0)
        assert "(global_batch_size: 4 -> 8)" in ranks.output(0)
    config.checkpoint.allow_changed = ["config"]
    finish(config)
    log = read_log(run_dir)
    assert [line["consumed_train_samples"] for line in log] == [4, 8, 12, *range(20, 101, 8)]
    assert log[-1]["iteration"] == 14


def test_a_replanned_blend_is_accepted_without_a_flag(
    run_dir: Path, tmp_path: Path, sample_blend: Path, configure, finish
) -> None:
    settings = blend_settings(sample_blend)
    settings["sources"][0]["epochs"] = 2
    settings["sources"][2]["level"] = 5
    blend = replan_blend(run_dir, parse_blend_config(settings, "replanned"), tmp_path / "replanned")
    finish(configure(run_dir, data={"blend": str(blend)}, training={"train_iters": 4}))
    assert [line["iteration"] for line in read_log(run_dir)] == [1, 2, 3, 4]


def test_a_torn_plan_is_refused_by_the_run_and_built_again_by_the_builder(
    tmp_path: Path, sample_blend: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = parse_blend_config(blend_settings(sample_blend), "own")
    blend = build_blend(config, tmp_path / "blend")
    sound = PackedRows(blend).fingerprint
    for name in ("row_start.npy", "order_document.npy"):
        path = blend / name
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(IntegrityError, match=name):
            PackedRows(blend)
        build_blend(config, blend)
        assert PackedRows(blend).fingerprint == sound


BROKEN_STEP = 3


def _with_a_broken_number(config, steps: list[int], gradient: bool = False) -> int:
    """A run in which rank 1 gets a number that is not finite in its last micro-batch: the loss, or only a gradient."""
    import torch

    from megatron_huatuo.train import step

    forward_step, calls = step.forward_step, 0
    num_microbatches = config.training.global_batch_size // 2

    def broken(*arguments, **options):
        nonlocal calls
        calls += 1
        output, loss = forward_step(*arguments, **options)
        number, is_last = (calls - 1) // num_microbatches + 1, calls % num_microbatches == 0
        if number in steps and is_last and torch.distributed.get_rank() == 1:
            if gradient:
                output.register_hook(lambda grad: grad * float("inf"))
            else:
                output = output * float("nan")
        return output, loss

    step.forward_step = broken
    return launch_rank(config)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_rank_rows_and_sources(
    tmp_path: Path, sample_blend: Path, configure
) -> None:
    with started_ranks(2, _with_a_broken_number, configure(tmp_path), [BROKEN_STEP]) as ranks:
        assert ranks.wait(60) == [1, 1]
        output = ranks.output(0)
    # The third step has rows 8 to 11; its last micro-batch on rank 1 is row 11.
    rows = PackedRows(sample_blend)
    sources = sorted({rows.source_names[source] for source, _ in rows.documents_of(11)})
    assert f"not finite at iteration 3: ranks [1], rows [11], sources {sources}" in output
    assert "No update was made" in output
    assert read_status(tmp_path)["state"] == "failed" and "not finite" in read_status(tmp_path)["reason"]


def test_a_step_that_is_not_finite_is_skipped_when_the_setting_says_so(tmp_path: Path, configure) -> None:
    config = configure(tmp_path / "skip", training={"on_nonfinite": "skip", "train_iters": 5})
    with started_ranks(2, _with_a_broken_number, config, [BROKEN_STEP]) as ranks:
        assert ranks.wait(60) == [0, 0], ranks.output()[-4000:]
        assert "step skipped" in ranks.output(0)
    log = read_log(tmp_path / "skip")
    assert [line["skipped_steps"] for line in log] == [0, 0, 1, 0, 0]
    assert log[2]["lm_loss"] is None and all(line["lm_loss"] for line in log if line["iteration"] != 3)


def test_a_gradient_that_is_not_finite_is_found_too_and_names_the_rows_of_its_batch(
    tmp_path: Path, sample_blend: Path, configure
) -> None:
    with started_ranks(2, _with_a_broken_number, configure(tmp_path), [BROKEN_STEP], True) as ranks:
        assert ranks.wait(60) == [1, 1]
        output = ranks.output(0)
    rows = PackedRows(sample_blend)
    sources = sorted({rows.source_names[source] for row in range(8, 12) for source, _ in rows.documents_of(row)})
    assert f"not finite at iteration 3: ranks all (gradient), rows 8 to 11, sources {sources}" in output


def _with_a_broken_number_while_a_writer_works(config) -> int:
    from megatron_huatuo.checkpoint import share

    write = share.Share.write

    def slow(part: share.Share) -> share.WrittenShare:
        time.sleep(2)
        return write(part)

    share.Share.write = slow
    return _with_a_broken_number(config, [BROKEN_STEP])


def test_a_save_in_the_background_is_finished_before_a_number_stops_the_run(tmp_path: Path, configure) -> None:
    config = configure(tmp_path, checkpoint={"asynchronous": True, "save_interval": BROKEN_STEP - 1})
    with started_ranks(2, _with_a_broken_number_while_a_writer_works, config) as ranks:
        assert ranks.wait(60) == [1, 1]
        assert "not finite at iteration 3" in ranks.output(0)
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == ["iter_0000002"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "2\n"


def test_a_run_that_skips_every_step_is_ended(tmp_path: Path, configure) -> None:
    config = configure(
        tmp_path, training={"on_nonfinite": "skip", "train_iters": 20}, checkpoint={"save_interval": None}
    )
    with started_ranks(2, _with_a_broken_number, config, list(range(2, 21))) as ranks:
        assert ranks.wait(60) == [1, 1]
        assert "10 steps in a row were skipped" in ranks.output(0)
    assert read_log(tmp_path)[-1]["iteration"] == 10


def test_weights_after_a_skip_are_those_before_it(tmp_path: Path, configure, finish) -> None:
    finish(configure(tmp_path / "two", training={"train_iters": 2}))
    config = configure(tmp_path / "three", training={"on_nonfinite": "skip", "train_iters": 3})
    with started_ranks(2, _with_a_broken_number, config, [BROKEN_STEP]) as ranks:
        assert ranks.wait(60) == [0, 0], ranks.output()[-4000:]
    before, after = outcome(tmp_path / "two")[1], outcome(tmp_path / "three")[1]
    tensors = {name for name in before if "param_groups" not in name}  # their learning rate has gone on
    assert any("exp_avg" in name for name in tensors) and any("embedding" in name for name in tensors)
    assert {name: before[name] for name in tensors} == {name: after[name] for name in tensors}
