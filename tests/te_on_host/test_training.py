"""Losses with Transformer Engine's layers are those of the CPU path, and its unfused attention is never reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.te_on_host.conftest import STEPS, Outcome
from tests.te_on_host.environment import FLASH_ATTN, NEWER_FLASH_ATTN

pytestmark = pytest.mark.te
# Sums in another order, in float32; steps after the first train on what they gave.
_EXACT = {"lm_loss": 1e-5, "grad_norm": 1e-4}
_FUSED = ("FusedAttention", "thd_thd_thd", "padding_causal")


def check_same(outcome: Outcome, expected: list[dict[str, Any]], within: dict[str, float]) -> None:
    assert not any(outcome.codes), outcome.output[-4000:]
    assert len(outcome.log) == len(expected) == STEPS
    for name, tolerance in within.items():
        assert outcome.curve(name) == pytest.approx([line[name] for line in expected], rel=tolerance), name


@pytest.mark.parametrize(
    ("name", "tp", "training"),
    [
        ("llama", 1, {}),
        ("llama", 2, {}),
        ("qwen2-tied", 1, {}),
        ("qwen2-tied", 2, {"recompute_granularity": "selective"}),
        ("qwen3-tied", 1, {"recompute_granularity": "full"}),
        ("qwen3-tied", 2, {}),
        ("gemma3", 1, {}),
        ("gemma3", 2, {"recompute_granularity": "full"}),
        ("baichuan2-rope", 2, {}),
        ("llama", 1, {"recompute_granularity": "full"}),
        ("llama", 1, {"recompute_granularity": "selective"}),
    ],
)
def test_fp32_gives_the_losses_of_the_cpu_path(
    name: str,
    tp: int,
    training: dict[str, str],
    tmp_path: Path,
    sections: Callable[..., Any],
    on_host: Callable[..., Any],
    on_engine: Callable[..., Outcome],
) -> None:
    settings = sections(name, tp=tp, training={"precision": "fp32", **training})
    outcome = on_engine(tmp_path / "engine", settings, fp32_layers=True)
    check_same(outcome, on_host(tmp_path / "host", settings), _EXACT)
    assert {(what[0], *what[2:4]) for what in outcome.attention()} == {_FUSED}
    assert {what[1] for what in outcome.attention()} == {"layer 1", "layer 2"}
    assert "fused RMSNorm and linear layers (Transformer Engine): on" in outcome.output
    assert "fused cross-entropy: off, it rounds gradients to bf16" in outcome.output
    assert outcome.count("rope") and outcome.count("norm") and outcome.count("adam", "Transformer Engine")
    assert outcome.count("gemm", "NT", "accumulates"), (
        "gradients of weights go into the buffer without a pass of their own"
    )


@pytest.mark.parametrize(
    ("name", "tp", "training", "proofs"),
    [
        ("llama", 1, {}, 1),
        ("qwen3-tied", 2, {"recompute_granularity": "selective"}, 1),
        ("gemma3", 2, {}, 3),
        ("baichuan2-rope", 1, {"recompute_granularity": "full"}, 1),
    ],
)
def test_bf16_on_an_a100_attends_by_flash_attn(
    name: str,
    tp: int,
    training: dict[str, str],
    proofs: int,
    tmp_path: Path,
    sections: Callable[..., Any],
    on_host: Callable[..., Any],
    on_engine: Callable[..., Outcome],
) -> None:
    settings = sections(name, tp=tp, training=training)
    outcome = on_engine(tmp_path / "engine", settings, capability=80, flash_attn=FLASH_ATTN)
    check_same(outcome, on_host(tmp_path / "host", settings), {"lm_loss": 1e-2})
    assert {what[0] for what in outcome.attention()} == {"FlashAttention"}
    assert outcome.count("flash_attn", "backward") == 2 * 2 * STEPS + proofs, (
        "two layers, two micro-batches; the proofs at the start: documents of each kind of layer, and a window"
    )


@pytest.mark.parametrize("flash_attn", [FLASH_ATTN, NEWER_FLASH_ATTN])
def test_bf16_on_an_h100_attends_by_cudnn_whatever_flash_attn_is_there(
    flash_attn: str,
    tmp_path: Path,
    sections: Callable[..., Any],
    on_host: Callable[..., Any],
    on_engine: Callable[..., Outcome],
) -> None:
    settings = sections("gemma3", tp=2, training={"recompute_granularity": "full"})
    outcome = on_engine(tmp_path / "engine", settings, flash_attn=flash_attn)
    check_same(outcome, on_host(tmp_path / "host", settings), {"lm_loss": 1e-2})
    assert {(what[0], *what[2:4]) for what in outcome.attention()} == {_FUSED}
    assert not outcome.count("flash_attn")


@pytest.mark.parametrize("tp", [1, 2])
def test_alibi_goes_to_flash_attn_with_the_slopes_of_this_ranks_heads(
    tp: int,
    tmp_path: Path,
    sections: Callable[..., Any],
    on_host: Callable[..., Any],
    on_engine: Callable[..., Outcome],
) -> None:
    settings = sections("baichuan2-alibi", tp=tp)
    outcome = on_engine(tmp_path / "engine", settings, flash_attn=FLASH_ATTN)
    check_same(outcome, on_host(tmp_path / "host", settings), {"lm_loss": 1e-2})
    assert not outcome.attention(), "none of Transformer Engine's own"
    assert outcome.count("flash_attn", "forward", "alibi", f"{4 // tp} heads") == outcome.count("flash_attn", "forward")
    assert outcome.count("norm") and outcome.count("gemm"), "its layers are Transformer Engine's all the same"
