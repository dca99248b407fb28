"""The engine on one GPU: its losses are the CPU's in both precisions, and it resumes bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.train.train_config import TrainConfig
from tests.conftest import DATA
from tests.distributed.engine import launch_rank, make_config, outcome, read_log
from tests.distributed.runner import started_ranks
from tests.unit.convert.small_models import SMALL, write_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
STEPS = 12
FAMILIES = ("llama", "qwen2-tied", "baichuan2-alibi")


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256 tokens from the bundled dialogues, several documents in each."""
    root, sft = tmp_path_factory.mktemp("sample"), DATA / "sft.jsonl"
    train_tokenizer([sft], root / "tokenizer", 1024)
    build_index([sft], root / "sft", root / "tokenizer", workers=1)
    source = {"name": "sft", "path_prefix": str(root / "sft"), "level": 0, "epochs": 4}
    return build_blend(
        parse_blend_config({"seq_length": 256, "seed": 5, "sources": [source]}, "sample"), root / "blend"
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face directories with random weights; heads of 64, which every kernel takes."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"num_layers": 2, "hidden_size": 384, "ffn_hidden_size": 512, "head_dim": 64, "vocab_size": 1024}
    return {name: write_model(root / name, dataclasses.replace(SMALL[name], **sizes)) for name in FAMILIES}


def _config(run_dir: Path, blend: Path, model: Path, device: str, **training: object) -> TrainConfig:
    return make_config(
        run_dir,
        blend,
        model={"preset": None, "hf": str(model), "init_from": str(model)},
        training={"train_iters": STEPS, "micro_batch_size": 2, **training},
        runtime={"device": device, "deterministic": True},
    )


def _losses(config: TrainConfig) -> list[float]:
    """Loss of every step of a run on one rank, to its good end."""
    with started_ranks(1, launch_rank, config) as ranks:
        assert ranks.wait(500) == [0], ranks.output()[-4000:]
    return [line["lm_loss"] for line in read_log(config.run_dir)]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_on_a_gpu_are_those_of_the_cpu(
    family: str, tmp_path: Path, blend: Path, models: dict[str, Path]
) -> None:
    model = models[family]
    expected = _losses(_config(tmp_path / "cpu", blend, model, "cpu"))
    assert len(expected) == STEPS and expected[-1] < expected[0]
    assert _losses(_config(tmp_path / "fp32", blend, model, "cuda")) == pytest.approx(expected, rel=1e-4)
    assert _losses(_config(tmp_path / "bf16", blend, model, "cuda", precision="bf16")) == pytest.approx(
        expected, rel=0.05
    )


def test_full_recomputation_on_a_gpu_keeps_the_losses(tmp_path: Path, blend: Path, models: dict[str, Path]) -> None:
    kept = _losses(_config(tmp_path / "kept", blend, models["llama"], "cuda"))
    again = _losses(_config(tmp_path / "full", blend, models["llama"], "cuda", recompute_granularity="full"))
    assert again == pytest.approx(kept, rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_on_a_gpu_is_bitwise(precision: str, tmp_path: Path, blend: Path, models: dict[str, Path]) -> None:
    def run(name: str, last: int) -> None:
        _losses(_config(tmp_path / name, blend, models["llama"], "cuda", precision=precision, train_iters=last))

    run("whole", STEPS)
    run("resumed", 5)
    run("resumed", STEPS)
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "whole")
