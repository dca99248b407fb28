"""The CUDA kernel's own code, compiled for the CPU: it passes the tests that it must pass on a GPU, but the two longest, with a
block's threads in random order between barriers, and ThreadSanitizer finds no two of them at one address without a barrier between.

This proves the algorithm (indices, barriers, buffers), not the hardware: nothing here has run on a GPU.
"""

from __future__ import annotations

import os
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
# Without conftest.py, which skips these tests where there is no device: here a stand-in is one. -s: a race ends the process.
sys.exit(pytest.main(["-x", "-s", "--noconftest", "-m", "gpu", "tests/gpu/test_blend_order.py", *sys.argv[2:]]))
"""
# But those with millions of draws, whose threads the host runs one after another.
MANY_PROBLEMS = "not recipe_sized and not problems_have_the_cpu_bytes[4]"
# Those with few draws: the sanitizer makes every access ten times as slow.
SMALL_PROBLEMS = "held_back or problems_have_the_cpu_bytes[1] or problems_have_the_cpu_bytes[2]"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="needs g++ on Linux"),
]


def as_plain_cpp(text: str) -> str:
    """CUDA's own syntax, a launch and memory whose size the launch gives, as calls of the stand-in header."""
    text, launches = re.subn(r"(\w+)<<<(.+?)>>>\((.+?)\);", r"launch(\2, [&] { \1(\3); });", text, flags=re.DOTALL)
    text, arrays = re.subn(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = static_cast<\1*>(dynamic_shared);", text)
    assert (launches, arrays) == (1, 1)
    return text


def compiled(*words: str) -> None:
    done = subprocess.run(["g++", "-fPIC", "-pthread", *words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the kernel's files for the CPU as objects, and the device's as plain C++."""
    folder = tmp_path_factory.mktemp("cuda_on_host")
    (folder / "device.cpp").write_text(as_plain_cpp((ROOT / "csrc" / "blend_order.cu").read_text()))
    for source in sorted((ROOT / "csrc").glob("*.cpp")):
        optimised = "-O0" if source.stem == "bindings" else "-O1"  # twice as quick to compile
        compiled(*compile_options(), optimised, "-c", str(source), "-o", str(folder / f"{source.stem}.o"))
    return folder


def compile_options() -> list[str]:
    pybind11 = pytest.importorskip("pybind11")
    include = (ROOT / "csrc", SHIM, pybind11.get_include(), sysconfig.get_paths()["include"])
    return ["-std=c++17", "-fvisibility=hidden", "-DMEGATRON_HUATUO_CUDA", *(f"-I{path}" for path in include)]


def build_module(folder: Path, name: str, *options: str) -> Path:
    """The module with the device's code compiled with `options`."""
    device, module = folder / f"device_{name}.o", folder / f"{name}.so"
    compiled(*compile_options(), "-O1", *options, "-c", str(folder / "device.cpp"), "-o", str(device))
    objects = [str(folder / f"{source.stem}.o") for source in (ROOT / "csrc").glob("*.cpp")]
    compiled("-shared", *options, *objects, str(device), "-o", str(module))
    return module


def run_gpu_tests(module: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN_GPU_TESTS, str(module), *options]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, env=env)


def assert_passed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed(, \d+ deselected)? in ", done.stdout, re.MULTILINE)  # none skipped


def test_device_code_gives_the_cpu_bytes_when_run_on_the_host(folder: Path) -> None:
    assert_passed(run_gpu_tests(build_module(folder, "plain"), "-k", MANY_PROBLEMS))


@pytest.mark.slow
def test_threads_of_the_device_meet_at_no_address_without_a_barrier(folder: Path) -> None:
    """And a barrier that is left out on purpose is found."""
    library = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    if not Path(library.stdout.strip()).is_file():
        pytest.skip("needs g++'s ThreadSanitizer, libtsan.so")
    module = build_module(folder, "sanitized", "-fsanitize=thread", "-g1")
    sanitizer = {
        "LD_PRELOAD": library.stdout.strip(),
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1",
    }
    done = run_gpu_tests(module, "-k", SMALL_PROBLEMS, **sanitizer)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer of this compiler does not run under this kernel (vm.mmap_rnd_bits)")
    assert_passed(done)
    lines = (folder / "device.cpp").read_text().splitlines()
    after = next(number for number, line in enumerate(lines, 1) if "philox(sequence, block + threadIdx.x" in line)
    assert "__syncthreads();" in lines[after]
    broken = run_gpu_tests(module, "-k", "held_back", CUDA_ON_HOST_SKIP=str(after + 1), **sanitizer)
    assert broken.returncode == 66 and "WARNING: ThreadSanitizer: data race" in broken.stderr, broken.stderr
    assert "order_cell" in broken.stderr
