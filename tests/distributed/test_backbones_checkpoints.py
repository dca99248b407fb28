"""Checkpoints of the recipe's own backbone move between layouts and formats without losing a bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.storage.manifest import read_json, write_json
from tests.distributed.runner import run_ranks
from tests.unit.convert.small_models import SMALL, write_model

# Four heads and four layers, so that TP4, PP2 and PP2 with two virtual stages exist; NormHead and ALiBi as in Baichuan2-13B.
BAICHUAN = dataclasses.replace(
    SMALL["baichuan2-alibi"], num_layers=4, num_attention_heads=4, num_query_groups=4, head_dim=24
)


def _model(tp: int, pp: int, virtual: int | None = None) -> list[Any]:
    """The chunks of this rank."""
    from megatron.core import parallel_state

    from megatron_huatuo.models.core.build_model import build_model
    from megatron_huatuo.parallel.host import enable_host

    enable_host()
    sizes = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": virtual,
    }
    parallel_state.initialize_model_parallel(**sizes)
    chunks = []
    for stage in range(virtual or 1):
        place = {"ignore_virtual": virtual is None, "vp_stage": stage if virtual else None}
        chunks.append(
            build_model(
                BAICHUAN,
                **sizes,
                **({"overlap_p2p_comm": True, "batch_p2p_comm": False} if virtual else {}),
                perform_initialization=False,
                pre_process=parallel_state.is_pipeline_first_stage(**place),
                post_process=parallel_state.is_pipeline_last_stage(**place),
                vp_stage=place["vp_stage"],
            )
        )
    return chunks


def _save(hf: str, checkpoints: str, tp: int, pp: int, virtual: int | None = None) -> None:
    from megatron_huatuo.checkpoint.load_hf import load_hf_weights
    from megatron_huatuo.checkpoint.save import save_checkpoint

    chunks = _model(tp, pp, virtual)
    load_hf_weights(chunks, hf, BAICHUAN)

    def companions(directory: Path) -> None:
        write_json(directory / "architecture.json", BAICHUAN.to_dict())

    save_checkpoint(checkpoints, 7, chunks, None, {"consumed_train_samples": 70}, companions)


def _load_and_compare(hf: str, checkpoint: str, tp: int, pp: int) -> list[str]:
    """Names of the parameters that differ from a direct load of the Hugging Face weights."""
    from megatron_huatuo.checkpoint.load_hf import load_hf_weights
    from megatron_huatuo.checkpoint.store import load_weights

    [model] = _model(tp, pp)
    load_weights(checkpoint, [model])
    loaded = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    load_hf_weights([model], hf, BAICHUAN)
    return [name for name, parameter in model.named_parameters() if not torch.equal(parameter, loaded[name])]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(Hugging Face directory, checkpoint saved at TP2, checkpoint imported without a model)."""
    root = tmp_path_factory.mktemp("baichuan")
    hf = write_model(root / "hf", BAICHUAN)
    run_ranks(2, _save, str(hf), str(root / "saved"), 2, 1)
    return hf, root / "saved" / "iter_0000007", import_hf(hf, root / "imported")


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (1, 2), (4, 1)])
def test_norm_head_saved_at_tp2_loads_on_other_layouts(directories, tp: int, pp: int) -> None:
    hf, saved, _ = directories
    assert run_ranks(tp * pp, _load_and_compare, str(hf), str(saved), tp, pp) == [[]] * (tp * pp)


def test_imported_checkpoint_loads_at_tp2(directories) -> None:
    hf, _, imported = directories
    assert run_ranks(2, _load_and_compare, str(hf), str(imported), 2, 1) == [[], []]


def _assert_equal_weights(one: Path, other: Path) -> None:
    before, after = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("which", ["saved at TP2", "imported"])
def test_export_gives_back_every_bit(directories, tmp_path: Path, which: str) -> None:
    hf, saved, imported = directories
    export_checkpoint(saved if which == "saved at TP2" else imported, tmp_path / "out", skip_verification=True)
    _assert_equal_weights(hf, tmp_path / "out")


@pytest.mark.parametrize(("tp", "pp", "virtual"), [(1, 1, None), (1, 2, None), (1, 2, 2), (2, 2, None)])
def test_every_layout_is_exported_bit_by_bit(
    directories, tmp_path: Path, tp: int, pp: int, virtual: int | None
) -> None:
    run_ranks(tp * pp, _save, str(directories[0]), str(tmp_path / "saved"), tp, pp, virtual)
    parity = export_checkpoint(tmp_path / "saved", tmp_path / "out")
    assert parity is not None and parity.continuation_tokens == 16
    _assert_equal_weights(directories[0], tmp_path / "out")


def test_a_background_save_with_its_optimizer_is_exported_like_any_other(tmp_path: Path, configure, finish) -> None:
    """Step 1 of two, saved beside the training on two tensor-parallel ranks, and saved while training waits."""
    exported = {}
    for asynchronous in (True, False):
        run_dir, out = tmp_path / f"run {asynchronous}", tmp_path / f"out {asynchronous}"
        sections = {"training": {"train_iters": 2}, "parallel": {"tensor_model_parallel_size": 2}}
        finish(configure(run_dir, checkpoint={"asynchronous": asynchronous, "save_interval": 1}, **sections))
        checkpoint = run_dir / "checkpoints" / "iter_0000001"
        assert read_json(checkpoint / "training.json")["optimizer_format"] is not None
        exported[asynchronous] = out
        assert export_checkpoint(checkpoint, out) is not None
    _assert_equal_weights(exported[True], exported[False])
