"""Where a run ends, and what its first ranks are told before a model is built."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
import torch

from megatron_huatuo.models.core import attention_backend
from megatron_huatuo.models.core.build_model import build_model
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.train import setup, start
from megatron_huatuo.train.observers import fused_pieces
from megatron_huatuo.train.train_config import TrainConfig
from tests.unit.convert.small_models import SMALL

_LAYERS = "fused RMSNorm and linear layers (Transformer Engine)"


@pytest.mark.parametrize(
    ("wanted", "consumed", "last"),
    [
        (None, 64, 10),  # 2 steps of 32 rows are done, 32 rows are left for steps of 4
        (24, 64, 10),
        (7, 64, 7),
        (24, 96, 2),  # nothing is left
    ],
)
def test_a_run_ends_with_its_rows_whatever_batch_it_began_with(
    wanted: int | None, consumed: int, last: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig()
    config.training.global_batch_size, config.training.train_iters = 4, wanted
    monkeypatch.setattr(start, "is_log_rank", lambda: True)
    with caplog.at_level(logging.WARNING):
        steps_per_pass, train_iters = start.plan_steps(config, 96, 2, consumed)
    assert train_iters == last
    assert steps_per_pass == 2 + (96 - consumed) // 4
    said = caplog.text.count(f"training.train_iters is 24, but the rows end at step {last} with 4 rows per step")
    assert said == (wanted == 24)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_deterministic_run_tells_every_kernel_that_has_a_choice(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's kernels have none; there megatron-core's slower embedding is left out."""
    told: dict[str, Any] = {}
    chunk: Any = torch.nn.Module()
    chunk.attention_backend = "torch"
    monkeypatch.setattr(setup, "build_model", lambda architecture, **settings: told.update(settings) or chunk)
    for name in ("is_pipeline_first_stage", "is_pipeline_last_stage"):
        monkeypatch.setattr(setup.parallel_state, name, lambda **options: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    monkeypatch.setattr(setup.tensor_parallel.random, "model_parallel_cuda_manual_seed", lambda seed: None)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: told.update(torch=mode))
    for name in ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "1")
    config = TrainConfig()
    config.runtime.deterministic = True
    setup._seed(config)
    setup.build_chunks(config, get_preset("toy"), torch.device(device))
    assert told["torch"] is True and told["deterministic_mode"] is (device == "cuda")
    assert os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] == "0"


def test_layers_of_transformer_engine_add_to_the_gradient_buffer_without_apex() -> None:
    """megatron-core has one setting for them and for its output layer, which needs apex."""

    class Linear(torch.nn.Linear):  # as Transformer Engine's, which reads this in each forward pass
        fuse_wgrad_accumulation = False

    layer, head = Linear(2, 2), torch.nn.Linear(2, 2)
    setup.fuse_weight_gradients(torch.nn.Sequential(torch.nn.Sequential(layer), head))
    assert layer.fuse_wgrad_accumulation and not hasattr(head, "fuse_wgrad_accumulation")


def test_what_is_fused_is_told_of_the_model_as_built(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU with Transformer Engine and without apex."""
    chunk = build_model(SMALL["llama"])
    chunk.config.gradient_accumulation_fusion = False
    assert fused_pieces.fused_pieces(chunk, "cpu")[_LAYERS] == "the run is on the CPU"
    assert chunk.engine_layers_obstacle == "it needs a GPU"
    for module in (fused_pieces, attention_backend):
        monkeypatch.setattr(module, "import_obstacle", lambda name: None if "engine" in name else f"no {name}")

    chunk.engine_layers_obstacle = attention_backend.engine_layers_obstacle("cuda", "bf16")
    pieces = fused_pieces.fused_pieces(chunk, "cuda")
    assert pieces[_LAYERS] is pieces["fused RoPE"] is pieces["fused gradient accumulation of the layers"] is None
    assert pieces["fp8 matrix products"] == "training.fp8 is null"
    assert pieces["fused gradient accumulation of the output layer"] == (
        "no fused_weight_gradient_mlp_cuda, a part of NVIDIA apex"
    )

    chunk.engine_layers_obstacle = attention_backend.engine_layers_obstacle("cuda", "fp32")
    pieces = fused_pieces.fused_pieces(chunk, "cuda")
    assert pieces[_LAYERS] == pieces["fp8 matrix products"] == "it needs precision bf16"
    assert pieces["fused RoPE"] is None
    assert pieces["fused gradient accumulation of the layers"] == "it needs Transformer Engine's layers or NVIDIA apex"
    alibi = build_model(SMALL["baichuan2-alibi"])
    assert fused_pieces.fused_pieces(alibi, "cuda")["fused RoPE"] == "this backbone has no RoPE"
