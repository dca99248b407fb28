"""What cannot work is refused before any process group starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from megatron_huatuo.checkpoint.save import SaveError
from megatron_huatuo.errors import ConfigError, HuatuoError, IntegrityError
from megatron_huatuo.parallel.parallel_config import ParallelConfig
from megatron_huatuo.parallel.process_groups import initialize_process_groups
from megatron_huatuo.train import launch as launch_module
from megatron_huatuo.train.launch import check_machine, launch
from megatron_huatuo.train.train_config import TrainConfig


@pytest.fixture
def config(tmp_path: Path, sample_blend: Path, small_model: Path) -> TrainConfig:
    config = TrainConfig(run_dir=str(tmp_path / "run"))
    config.model.hf, config.data.blend = str(small_model), str(sample_blend)
    config.training.global_batch_size = 4
    config.runtime.device = "cpu"
    return config


def refused(config: TrainConfig, message: str, error: type[Exception] = ConfigError) -> None:
    with pytest.raises(error, match=message):
        launch(config)
    assert not dist.is_initialized()
    assert not Path(config.run_dir).exists()


def test_a_run_without_a_blend_is_refused(config: TrainConfig) -> None:
    config.data.blend = ""
    refused(config, r"wrong data.blend: got nothing, need a blend directory")


def test_a_blend_that_is_not_there_is_refused(config: TrainConfig) -> None:
    config.data.blend += "/elsewhere"
    refused(config, "file is missing: .*elsewhere", IntegrityError)


def test_a_layout_that_does_not_fit_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    config.parallel.tensor_model_parallel_size = 2
    refused(config, r"wrong number of ranks: got 3, need a multiple of .* = 2. Start 2 or a multiple")


def test_a_gpu_that_is_not_there_is_refused(config: TrainConfig) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config.runtime.device = "cuda"
    refused(config, r"wrong runtime.device: got 'cuda', but torch sees no GPU")


def test_overlap_that_needs_transformer_engine_is_refused_without_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config.parallel.tensor_model_parallel_size, config.parallel.tp_comm_overlap = 2, True
    refused(config, r"wrong parallel.tp_comm_overlap: it needs GPUs and Transformer Engine, but the run is on the CPU")


def test_fp8_is_refused_where_nothing_can_do_it(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.training.precision, config.training.fp8 = "bf16", "hybrid"
    refused(config, r"wrong training.fp8: got 'hybrid', but the run is on the CPU. Use a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    config.runtime.device = "auto"
    refused(config, r"wrong training.fp8: got 'hybrid', but the package transformer_engine is not installed")
    monkeypatch.setattr(launch_module, "engine_obstacle", lambda: "transformer_engine 2.20 is untested")
    refused(config, r"wrong training.fp8: got 'hybrid', but transformer_engine 2.20 is untested")
    monkeypatch.setattr(launch_module, "engine_obstacle", lambda: None)
    refused(config, r"but recipe tensorwise needs compute capability \(8, 9\), and the GPU has \(8, 0\)")


def test_more_ranks_than_gpus_are_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config.runtime.device = "auto"
    check_machine(config, 2)
    with pytest.raises(ConfigError, match="wrong number of ranks on this node: got 3, need at most 2, its GPUs"):
        check_machine(config, 3)


def test_restarts_over_several_nodes_need_a_fresh_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GROUP_WORLD_SIZE": "2",
        "TORCHELASTIC_MAX_RESTARTS": "3",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"got 3 on 2 nodes.* Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        initialize_process_groups(ParallelConfig(), torch.device("cpu"))


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """attempt(n): give the process what torchrun gives rank 0 of its nth attempt."""
    logs = DefaultLogsSpecs(log_dir=str(tmp_path / "logs"))

    def begin(number: int) -> None:
        environment = {0: {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": str(number)}}
        logs.reify(environment)
        for name, value in environment[0].items():
            monkeypatch.setenv(name, value)

    return begin


def test_a_failure_that_would_be_met_again_is_not_tried_again(attempt, config: TrainConfig) -> None:
    blend, config.data.blend = config.data.blend, config.data.blend + "/elsewhere"
    attempt(0)
    refused(config, "file is missing: .*elsewhere", IntegrityError)
    config.data.blend = blend  # nothing is looked at any more
    for number in (1, 2):
        attempt(number)
        refused(config, "^file is missing: .*elsewhere", HuatuoError)


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (HuatuoError("loss is not finite"), True),
        (SaveError("disk is full"), False),
        (RuntimeError("a rank died"), False),
    ],
)
def test_a_run_that_broke_off_is_tried_again_unless_it_would_break_off_again(
    error: Exception, is_final: bool, attempt, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(launch_module.os, "_exit", codes.append)
    attempt(0)
    launch_module.leave_at_once(error)
    assert codes == [1]
    attempt(1)
    if is_final:
        refused(config, "^loss is not finite$", HuatuoError)
    else:
        assert launch(config, dry_run=True) == 0


def test_a_dry_run_prints_the_settings_and_starts_nothing(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    assert launch(config, dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "global_batch_size: 4" in printed and "steps on 1 ranks: would start" in printed
    assert not dist.is_initialized() and not Path(config.run_dir).exists()
