"""Which attention the project and Transformer Engine choose, by device and by what is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.te_on_host.conftest import Outcome
from tests.te_on_host.environment import NEWER_FLASH_ATTN

pytestmark = pytest.mark.te


def test_a_newer_flash_attn_on_an_a100_is_used_without_transformer_engines_attention(
    tmp_path: Path, sections: Callable[..., Any], on_engine: Callable[..., Outcome]
) -> None:
    """Transformer Engine does not know it, and would fall back to scores of all pairs."""
    outcome = on_engine(tmp_path, sections("llama"), capability=80, flash_attn=NEWER_FLASH_ATTN)
    assert outcome.codes == [0], outcome.output[-4000:]
    assert not outcome.attention() and outcome.count("flash_attn", "forward") and outcome.count("gemm")
    assert "attention: flash_attn on cuda" in outcome.output


def test_an_a100_without_flash_attn_attends_by_torch(
    tmp_path: Path, sections: Callable[..., Any], on_engine: Callable[..., Outcome]
) -> None:
    outcome = on_engine(tmp_path, sections("llama"), capability=80)
    assert outcome.codes == [0], outcome.output[-4000:]
    assert not outcome.attention() and "attention: torch on cuda (slower" in outcome.output


def test_an_fp32_run_has_megatron_cores_layers_and_says_so(
    tmp_path: Path, sections: Callable[..., Any], on_engine: Callable[..., Outcome]
) -> None:
    """Transformer Engine's would multiply in TF32."""
    outcome = on_engine(tmp_path, sections("llama", training={"precision": "fp32"}), capability=80)
    assert outcome.codes == [0], outcome.output[-4000:]
    assert not outcome.count("gemm") and not outcome.count("norm") and outcome.count("rope")
    assert "fused RMSNorm and linear layers (Transformer Engine): off, it needs precision bf16" in outcome.output
    assert "fused RoPE: on" in outcome.output


def test_asked_for_transformer_engine_an_a100_without_flash_attn_refuses(
    tmp_path: Path, sections: Callable[..., Any], on_engine: Callable[..., Outcome]
) -> None:
    settings = sections("llama", model={"attention": "transformer_engine"})
    outcome = on_engine(tmp_path, settings, capability=80)
    assert outcome.codes == [1] and not outcome.attention()
    assert "its fused attention needs flash-attn 2.8.3 at most, and there is none" in outcome.output


def test_where_no_fused_kernel_fits_transformer_engine_refuses(
    tmp_path: Path, sections: Callable[..., Any], on_engine: Callable[..., Outcome]
) -> None:
    """As with a cuDNN that takes less than the project expects of the device: the kernels are those of an A100."""
    outcome = on_engine(tmp_path, sections("llama"), capability=90, HARNESS_CAPABILITY="80")
    assert outcome.codes == [1] and not outcome.attention()
    assert "No dot product attention backend is available" in outcome.output
