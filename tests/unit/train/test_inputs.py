"""A dry run finds what is missing, and a run is refused for it before any process group starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.train.launch import launch
from megatron_huatuo.train.train_config import TrainConfig, ValidationSource
from tests.distributed.engine import make_config


@pytest.fixture
def config(tmp_path: Path, sample_blend: Path, small_model: Path) -> TrainConfig:
    return make_config(tmp_path / "run", sample_blend, model={"preset": None, "hf": str(small_model)})


def refused(config: TrainConfig, error: type[Exception], message: str) -> None:
    for dry_run in (True, False):
        with pytest.raises(error, match=message):
            launch(config, dry_run=dry_run)
    assert not dist.is_initialized() and not Path(config.run_dir).exists()


def test_what_is_in_place_passes(config: TrainConfig, sample_blend: Path, saved_checkpoint: Path) -> None:
    config.data.validation = [ValidationSource("web", str(sample_blend.parent / "index" / "web"))]
    config.model.init_from = str(saved_checkpoint)
    assert launch(config, dry_run=True) == 0


def test_first_weights_that_are_not_there_are_refused(config: TrainConfig, tmp_path: Path, small_model: Path) -> None:
    config.model.init_from = str(tmp_path / "nowhere")
    refused(config, ConfigError, "wrong model.init_from: got .*nowhere, need a Hugging Face directory or a checkpoint")
    config.model.init_from = str(small_model)  # a config.json, and no weights
    refused(config, IntegrityError, str(small_model))
    shutil.copytree(small_model, tmp_path / "other")
    content = json.loads((small_model / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(content | {"rms_norm_eps": 1e-3}))
    config.model.init_from = str(tmp_path / "other")
    refused(config, ConfigError, "model.init_from does not belong to the run's model: norm_epsilon is 1e-06")


def test_a_run_that_resumes_needs_no_first_weights(config: TrainConfig, saved_checkpoint: Path) -> None:
    config.run_dir, config.model.init_from = str(saved_checkpoint.parents[1]), "deleted/since"
    assert launch(config, dry_run=True) == 0


def test_a_held_out_index_that_is_not_there_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    config.data.validation = [ValidationSource("web", str(tmp_path / "nowhere"))]
    refused(config, DataError, "nowhere")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(
    config: TrainConfig, tmp_path: Path, small_model: Path
) -> None:
    content = json.loads((small_model / "config.json").read_text())
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(content | {"vocab_size": 64}))
    config.model.hf = str(tmp_path / "small")
    refused(config, DataError, "tokenizer does not fit the model: got .* ids, but the embedding has 64 rows")


def test_wandb_that_is_absent_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    config.logging.wandb_project = "mine"
    refused(config, ConfigError, "wrong logging.wandb_project: got 'mine', but wandb is not installed")
