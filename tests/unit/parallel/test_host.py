"""What `enable_host` changes, in a process of its own, because it changes the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError, HuatuoError
from megatron_huatuo.parallel.host import enable_host, resolve_device
from tests.distributed.engine import make_config, read_log
from tests.unit import kill

ROOT = Path(__file__).parents[3]


# A package that can be imported, and whose parts end the process when they are called.
INSTALLED = """
import importlib.abc, importlib.machinery, sys, types

PACKAGES = {packages!r}

def part(whole, name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Part(f"{{whole.__name__}}.{{name}}", (), {{}})

class Part(type):
    __getattr__ = part
    def __call__(self, *arguments, **options):
        raise SystemExit(f"{{self.__name__}} was called")

class Package(types.ModuleType):
    __version__ = "2.9.0"
    __path__ = []
    __getattr__ = part

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in PACKAGES else None
    def create_module(self, spec):
        return Package(spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Finder())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _cuda_names() -> None:
    enable_host()
    patched = torch.zeros
    enable_host()
    assert torch.zeros is patched
    assert torch.tensor([1.0], device="cuda").device.type == "cpu"
    assert torch.zeros(2, device="cuda:0").cuda().device.type == "cpu"
    assert torch.ones(2).type() == "torch.cuda.FloatTensor"
    assert torch.ones(2).type(torch.int64).dtype == torch.int64
    assert torch.cuda.current_device() == torch.device("cpu")
    assert torch.empty(2, device="meta").device.type == "meta"


def test_cuda_names_lead_to_the_cpu_and_a_second_call_changes_nothing() -> None:
    kill.run(_cuda_names)


def _untested_core() -> None:
    import megatron.core

    megatron.core.__version__ = "0.99.0"
    with pytest.raises(HuatuoError, match=r"megatron-core 0\.99\.0 is untested without CUDA: need 0\.16 or 0\.19"):
        enable_host()


def test_an_untested_megatron_core_is_refused() -> None:
    kill.run(_untested_core)


def test_device_settings() -> None:
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="got 'tpu', need auto, cpu or cuda"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        resolve_device("cuda")


def _losses(run_dir: Path, sample_blend: Path, small_model: Path, packages: list[str], ends: list[int]) -> list[float]:
    """Loss of each step of a run that ends at steps `ends`, in processes that find `packages` installed."""
    run_dir.mkdir()
    for last in ends:
        config = make_config(
            run_dir, sample_blend, model={"preset": None, "hf": str(small_model)}, training={"train_iters": last}
        )
        (run_dir / "train.yaml").write_text(yaml.safe_dump(to_plain(config)))
        tool = f"import runpy; runpy.run_path({str(ROOT / 'tools' / 'train.py')!r}, run_name='__main__')"
        done = run(INSTALLED.format(packages=packages) + tool, "--config", str(run_dir / "train.yaml"))
        assert done.returncode == 0, done.stderr[-3000:]
    return [line["lm_loss"] for line in read_log(run_dir)]


@pytest.mark.slow
def test_on_the_cpu_installed_gpu_packages_are_not_used(tmp_path: Path, sample_blend: Path, small_model: Path) -> None:
    """Optimizer, clipping and checkpoints are torch's and megatron-core's own, whatever could be imported."""
    engine = ["transformer_engine", "transformer_engine_torch"]
    apex = [
        "apex",
        "amp_C",
        "fused_weight_gradient_mlp_cuda",
    ]  # apart: what prefers one of the two never asks for the other
    without = _losses(tmp_path / "without", sample_blend, small_model, [], [4])
    assert len(without) == 4
    assert _losses(tmp_path / "engine", sample_blend, small_model, engine, [2, 4]) == without
    assert _losses(tmp_path / "apex", sample_blend, small_model, apex, [4]) == without
