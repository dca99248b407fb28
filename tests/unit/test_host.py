"""What `enable_host` changes, in a process of its own, because it changes the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.host import resolve_device

ROOT = Path(__file__).parents[2]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_cuda_names_lead_to_the_cpu_and_a_second_call_changes_nothing() -> None:
    done = run(
        "import torch\n"
        "from megatron_huatuo.host import enable_host\n"
        "enable_host(); patched = torch.zeros; enable_host()\n"
        "assert torch.zeros is patched\n"
        "assert torch.tensor([1.0], device='cuda').device.type == 'cpu'\n"
        "assert torch.zeros(2, device='cuda:0').cuda().device.type == 'cpu'\n"
        "assert torch.ones(2).type() == 'torch.cuda.FloatTensor'\n"
        "assert torch.ones(2).type(torch.int64).dtype == torch.int64\n"
        "assert torch.cuda.current_device() == torch.device('cpu')\n"
        "assert torch.empty(2, device='meta').device.type == 'meta'\n"
    )
    assert done.returncode == 0, done.stderr


def test_an_untested_megatron_core_is_refused() -> None:
    done = run(
        "import megatron.core\n"
        "megatron.core.__version__ = '0.99.0'\n"
        "from megatron_huatuo.host import enable_host\n"
        "enable_host()\n"
    )
    assert done.returncode != 0
    assert "megatron-core 0.99.0 is untested without CUDA: need 0.16" in done.stderr


def test_device_settings() -> None:
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="got 'tpu', need auto, cpu or cuda"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        resolve_device("cuda")
