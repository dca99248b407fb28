"""First weights belong to the run's model, or the run does not begin."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import RopeScaling
from megatron_huatuo.models.core.build_model import build_model
from megatron_huatuo.train.first_weights import load_first_weights
from tests.unit.convert.small_models import SMALL, random_weights, write_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_epsilon": 1e-6}, "norm_epsilon is 1e-06 in the run and 1e-05 there"),
        ({"rope_theta": 1e4}, r"rope_theta is 10000\.0 in the run and 500000\.0 there"),
        (
            {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
            r"rope_scaling is RopeScaling\(factor=8\.0.* and None there",
        ),
        ({"family": "qwen2", "qkv_bias": True}, "family is qwen2 in the run and llama there, qkv_bias is True"),
        ({"vocab_size": 168}, "vocab_size is 168 in the run and 160 there"),
    ],
)
def test_weights_of_a_model_that_computes_something_else_are_refused(
    alone: None,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    import_hf(directory, tmp_path / "checkpoint")
    model = build_model(dataclasses.replace(SMALL["llama"], **changes))
    before = {name: value.clone() for name, value in model.state_dict().items() if value is not None}
    for origin in (directory, tmp_path / "checkpoint"):
        with pytest.raises(
            ConfigError, match=rf"does not belong to the run's model: .*{message}.*\({origin}.*model\.hf"
        ):
            load_first_weights(str(origin), [model], dataclasses.replace(SMALL["llama"], **changes))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if value is not None)


def test_lengths_and_ids_may_differ(alone: None, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", SMALL["llama"])
    content = json.loads((directory / "config.json").read_text())
    content |= {"max_position_embeddings": 99, "eos_token_id": 7, "initializer_range": 0.5}
    (directory / "config.json").write_text(json.dumps(content))
    model = build_model(SMALL["llama"])
    load_first_weights(str(directory), [model], SMALL["llama"])
    expected = random_weights(SMALL["llama"])["model.embed_tokens.weight"]
    assert torch.equal(model.embedding.word_embeddings.weight, expected)


def test_a_name_of_the_hub_is_told_from_a_directory(alone: None) -> None:
    with pytest.raises(ConfigError, match=r"wrong model\.init_from: got Qwen/Qwen2\.5-7B, need a .*hf download"):
        load_first_weights("Qwen/Qwen2.5-7B", [], SMALL["llama"])
