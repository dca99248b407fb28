"""General text is measured before the first step and after; a model that forgot is not exported without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.storage.run_files import read_training_state, resolve_checkpoint
from megatron_huatuo.train.observers.forgetting import Forgetting, check_general_sources
from megatron_huatuo.train.train_config import TrainConfig, ValidationSource
from tests.distributed.engine import read_log


def test_a_model_that_forgot_is_refused_and_named_on_request(
    tmp_path: Path, configure, finish, sample_blend: Path, small_model: Path, saved_checkpoint: Path
) -> None:
    """One huge step ruins the loss on the general source; the run itself goes on, and resumes with the base's loss."""
    general = ValidationSource("general", str(sample_blend.parent / "index" / "books"), general=True)
    plain = ValidationSource("sft", str(sample_blend.parent / "index" / "sft"))
    sections = {
        "model": {"hf": str(small_model), "init_from": str(saved_checkpoint)},
        "data": {"validation": [general, plain]},
        "optimizer": {"lr": 1.0},
        "logging": {"validation_interval": 1},
    }
    for last in (2, 3):
        output = finish(configure(tmp_path, **sections, training={"train_iters": last}))
        assert ("loss of the first weights: general " in output) == (last == 2)
    log = read_log(tmp_path)
    known = read_training_state(resolve_checkpoint(tmp_path))["forgetting"]
    assert list(known) == ["general"] and known["general"]["max_increase"] == 0.01
    assert known["general"]["loss"] == log[-1]["validation_loss"]["general"]
    for line in log:
        rise = line["validation_loss"]["general"] / known["general"]["base_loss"] - 1
        assert line["general_loss_increase"] == {"general": pytest.approx(rise, rel=1e-12)}
    assert log[-1]["general_loss_increase"]["general"] > 0.01
    with pytest.raises(
        IntegrityError, match=r"model forgot: its loss on 'general' rose from .* allows 1\.00%.*--allow-forgetting"
    ):
        export_checkpoint(tmp_path, tmp_path / "hf", skip_verification=True)
    assert not (tmp_path / "hf").exists()
    export_checkpoint(tmp_path, tmp_path / "hf", skip_verification=True, allow_forgetting=True)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "## What it forgot" in card and "**more than the run allowed**" in card


def test_increases_are_relative_to_the_first_weights() -> None:
    forgetting = Forgetting([ValidationSource("g", "p", general=True, max_increase=0.5), ValidationSource("s", "q")])
    assert forgetting.unmeasured == ["g"] and forgetting.measure({"g": 3.0, "s": 1.0}) == {}
    forgetting.begin({"g": 2.0})
    assert forgetting.unmeasured == [] and forgetting.measure({"g": 3.0, "s": 1.0}) == {"g": 0.5}
    assert forgetting.to_plain() == {"g": {"base_loss": 2.0, "loss": 3.0, "max_increase": 0.5}}
    assert Forgetting([ValidationSource("g", "p", general=True)], forgetting.to_plain()).measure({"g": 1.0}) == {
        "g": -0.5
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            ValidationSource("g", "p", general=True),
            r"wrong data\.validation\[0\]\.general: source 'g' is compared with the base",
        ),
        (
            ValidationSource("g", "p", max_increase=0.2),
            r"wrong data\.validation\[0\]\.max_increase: got 0\.2 for source 'g'",
        ),
    ],
)
def test_a_source_without_a_base_is_refused(source: ValidationSource, message: str) -> None:
    config = TrainConfig()
    config.data.validation = [source]
    with pytest.raises(ConfigError, match=message):
        check_general_sources(config)
