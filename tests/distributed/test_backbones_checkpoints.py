"""Checkpoints of the recipe's own backbone move between layouts and formats without losing a bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_huatuo.export.publish import export_checkpoint
from megatron_huatuo.hf.import_checkpoint import import_hf
from megatron_huatuo.storage.manifest import write_json
from tests.distributed.runner import run_ranks
from tests.unit.hf.small_models import SMALL, write_model

# Four heads and two layers, so that TP4 and PP2 exist; NormHead and ALiBi as in Baichuan2-13B.
BAICHUAN = dataclasses.replace(SMALL["baichuan2-alibi"], num_attention_heads=4, num_query_groups=4, head_dim=24)


def _model(tp: int, pp: int):
    from megatron.core import parallel_state

    from megatron_huatuo.host import enable_host
    from megatron_huatuo.model.build import build_model

    enable_host()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    return build_model(
        BAICHUAN,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        perform_initialization=False,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )


def _save(hf: str, checkpoints: str, tp: int, pp: int) -> None:
    from megatron_huatuo.checkpoint.save import save_checkpoint
    from megatron_huatuo.hf.from_hf import load_hf_weights

    model = _model(tp, pp)
    load_hf_weights([model], hf, BAICHUAN)

    def companions(directory: Path) -> None:
        write_json(directory / "architecture.json", BAICHUAN.to_dict())

    save_checkpoint(checkpoints, 7, [model], None, {"consumed_train_samples": 70}, companions)


def _load_and_compare(hf: str, checkpoint: str, tp: int, pp: int) -> list[str]:
    """Names of the parameters that differ from a direct load of the Hugging Face weights."""
    from megatron_huatuo.checkpoint.store import load_weights
    from megatron_huatuo.hf.from_hf import load_hf_weights

    model = _model(tp, pp)
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


@pytest.mark.parametrize("which", ["saved at TP2", "imported"])
def test_export_gives_back_every_bit(directories, tmp_path: Path, which: str) -> None:
    hf, saved, imported = directories
    export_checkpoint(saved if which == "saved at TP2" else imported, tmp_path / "out", skip_verification=True)
    before, after = load_file(hf / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
