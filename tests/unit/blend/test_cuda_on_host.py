"""The CUDA kernel's own code, compiled for the CPU: it passes the tests that it must pass on a GPU.

This proves the algorithm (indices, barriers, buffers), not the hardware: nothing here has run on a GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHIM = ROOT / "tests" / "cuda_on_host"
RUN_GPU_TESTS = """
import importlib.util, sys
import pytest
import megatron_huatuo
spec = importlib.util.spec_from_file_location("megatron_huatuo._C", sys.argv[1])
megatron_huatuo._C = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(megatron_huatuo._C)
# Without conftest.py, which skips these tests where there is no device: here a stand-in is one.
sys.exit(pytest.main(["-x", "--noconftest", "-m", "gpu", "tests/gpu/test_blend_order.py"]))
"""


def as_plain_cpp(text: str) -> str:
    """CUDA's own syntax, a launch and memory whose size the launch gives, as calls of the stand-in header."""
    text, launches = re.subn(r"(\w+)<<<(.+?)>>>\((.+?)\);", r"launch(\2, [&] { \1(\3); });", text, flags=re.DOTALL)
    text, arrays = re.subn(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = static_cast<\1*>(dynamic_shared);", text)
    assert (launches, arrays) == (1, 1)
    return text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="needs g++ on Linux")
def test_device_code_gives_the_cpu_bytes_when_run_on_the_host(tmp_path: Path) -> None:
    pybind11 = pytest.importorskip("pybind11")
    (tmp_path / "device.cpp").write_text(as_plain_cpp((ROOT / "csrc" / "blend_order.cu").read_text()))
    sources = sorted((ROOT / "csrc").glob("*.cpp"))
    module = tmp_path / "_C.so"
    include = [f"-I{path}" for path in (ROOT / "csrc", SHIM, pybind11.get_include(), sysconfig.get_paths()["include"])]
    options = ["-shared", "-fPIC", "-std=c++17", "-O1", "-fvisibility=hidden", "-DMEGATRON_HUATUO_CUDA", "-pthread"]
    compile_module = ["g++", *options, *include, *map(str, sources), str(tmp_path / "device.cpp"), "-o", str(module)]
    compiled = subprocess.run(compile_module, capture_output=True, text=True, timeout=400)
    assert compiled.returncode == 0, compiled.stderr
    tests = [sys.executable, "-c", RUN_GPU_TESTS, str(module)]
    done = subprocess.run(tests, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed in ", done.stdout, re.MULTILINE)  # none skipped
