"""Models whose parameters fill no bucket evenly: what megatron-core pads at the end of a bucket is no value of a parameter."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.hf_config import config_json
from megatron_huatuo.storage.manifest import write_json
from megatron_huatuo.train import setup
from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.engine import launch_rank, outcome
from tests.distributed.runner import started_ranks

STEPS = 6
ODD = Architecture.of_layers(
    3,
    60,
    68,
    5,
    family="llama",
    vocab_size=2049,
    norm_epsilon=1e-6,
    rope_theta=1e4,
    max_position_embeddings=512,
    tied_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)


def _rank(config: TrainConfig, bucket_size: int) -> int:
    setup.BUCKET_SIZE = bucket_size
    return launch_rank(config)


@pytest.mark.parametrize("bucket_size", [7_001, 40_000_000])
def test_resume_with_odd_sizes_is_bitwise(bucket_size: int, tmp_path: Path, configure) -> None:
    """Tied, odd sizes, and buckets that end within the model: a checkpoint comes back bit by bit."""
    write_json(tmp_path / "model" / "config.json", config_json(ODD, "float32"))

    def run(folder: str, last: int) -> None:
        sections = {"model": {"hf": str(tmp_path / "model")}, "training": {"train_iters": last}}
        with started_ranks(2, _rank, configure(tmp_path / folder, **sections), bucket_size) as ranks:
            assert ranks.wait(120) == [0, 0], ranks.output()[-4000:]

    run("whole", STEPS)
    run("resumed", 4)
    run("resumed", STEPS)
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "whole")
