"""What the packages for GPUs are asked for, with stand-ins that note it; and what is said of those that are broken."""

from __future__ import annotations

import enum
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_huatuo.log import get_logger
from megatron_huatuo.models.core.attention import AttendedSegments
from megatron_huatuo.models.core.attention_backend import choose_backend, has_transformer_engine, import_obstacle


@pytest.mark.parametrize("deterministic", [False, True])
def test_flash_attention_is_told_to_be_deterministic(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    stand_in = types.ModuleType("flash_attn")
    stand_in.flash_attn_varlen_func = lambda *arguments, **options: asked.update(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    monkeypatch.delitem(sys.modules, "megatron_huatuo.models.core.attention_flash", raising=False)
    from megatron_huatuo.models.core.attention_flash import attend_with_flash

    monkeypatch.delitem(sys.modules, "megatron_huatuo.models.core.attention_flash")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    tensor = torch.zeros(4, 2, 8)
    attend_with_flash(tensor, tensor, tensor, AttendedSegments(torch.tensor([0, 4], dtype=torch.int32), 4), 0.5)
    assert asked["deterministic"] is deterministic and asked["causal"] is True


class _Modes(enum.Enum):
    NONE = "none"
    FP8 = "fp8"


@pytest.mark.parametrize(("fp8", "mode"), [(False, _Modes.NONE), (True, _Modes.FP8)])
def test_overlap_gets_buffers_of_a_whole_micro_batch(fp8: bool, mode: _Modes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def initialize_ub(  # the signature of Transformer Engine 2.9, 2.10 and 2.11
        shape: list[int],
        tp_size: int,
        use_fp8: bool = False,
        quantization_modes: list[_Modes] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        ub_cfgs: dict[str, Any] | None = None,
        bootstrap_backend: str | None = None,
    ) -> None:
        asked.update(shape=shape, tp_size=tp_size, modes=quantization_modes, backend=bootstrap_backend)

    names = ["transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.module"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    base = types.SimpleNamespace(initialize_ub=initialize_ub, UserBufferQuantizationMode=_Modes)
    monkeypatch.setattr(sys.modules[names[-1]], "base", base, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setenv("UB_SKIPMC", "")
    monkeypatch.delenv("UB_SKIPMC")
    from megatron_huatuo.models.core.transformer_engine import initialize_overlap

    initialize_overlap(tokens=8192, hidden_size=4096, tensor_model_parallel_size=2, fp8=fp8)
    assert asked == {"shape": [8192, 4096], "tp_size": 2, "modes": [mode], "backend": "nccl"}
    assert os.environ["UB_SKIPMC"] == "1", "an A100 has no multicast"


def test_transformer_engine_gets_no_tensor_that_begins_inside_another() -> None:
    """It knows no layout for one, as for a document cut out of a row, and raised at the start of every run."""
    from megatron_huatuo.models.core.transformer_engine import _at_start

    row = torch.arange(24.0, requires_grad=True).view(6, 2, 2)
    document = _at_start(row[2:5])
    assert document.storage_offset() == 0 and document.is_contiguous() and torch.equal(document, row[2:5])
    assert _at_start(row).data_ptr() == row.data_ptr(), "whole rows are not copied"


def test_a_broken_package_is_absent_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "transformer_engine" / "pytorch"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("raise OSError('libcublas.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformer_engine"]:
        monkeypatch.delitem(sys.modules, name)
    said: list[str] = []
    logger = get_logger("megatron_huatuo.models.core.attention_backend")
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    import_obstacle.cache_clear()
    try:
        assert not has_transformer_engine() and not has_transformer_engine()
        assert len(said) == 1
        assert said[0].startswith("transformer_engine is installed but broken: OSError: libcublas.so.13: cannot open")
        assert choose_backend("auto", device="cuda", alibi=False, precision="bf16") != "transformer_engine"
    finally:
        import_obstacle.cache_clear()
        sys.modules.pop("transformer_engine", None)


def test_a_package_that_is_not_there_is_not_called_broken() -> None:
    assert import_obstacle("no_such_package.part") == "the package no_such_package is not installed"
