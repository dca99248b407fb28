"""The C++ and CUDA kernel `megatron_huatuo._C` from csrc/; what else the package is, pyproject.toml says.

The kernel needs pybind11's headers (from the pybind11 package, else from torch's include folder) and nothing of torch.
The CUDA part is compiled when nvcc is found (CUDA_HOME, else `nvcc` on PATH); a failing nvcc warns once and the build
goes on without it. MEGATRON_HUATUO_CUDA=0 leaves it out. What the compiler says lies in build/cuda_resource_usage.txt,
whose registers and memory `make check` holds against a budget (benchmarks/kernel_budget.py); the rest is shown, too.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CUDA_ARCHITECTURES = ("80", "90")
RESOURCE_USAGE = ROOT / "build" / "cuda_resource_usage.txt"
USAGE_LINE = re.compile(r"ptxas info *: (\d+ bytes|Compil|Function properties|Used)|    \d+ bytes stack frame")


def pybind11_include() -> str:
    """Folder that holds pybind11/pybind11.h. Raises SystemExit naming the package to install."""
    for package, folder in (("pybind11", "include"), ("torch", "include")):
        spec = importlib.util.find_spec(package)  # looks the package up without running it
        if spec is not None and spec.origin is not None:
            include = Path(spec.origin).parent / folder
            if (include / "pybind11" / "pybind11.h").is_file():
                return str(include)
    raise SystemExit("pybind11's headers are missing: need the package pybind11 or torch. Run `pip install pybind11`.")


def cuda_home() -> Path | None:
    """Root of the CUDA toolkit, or None. `nvcc` on PATH may be a wrapper: its own dry run knows the root."""
    if os.environ.get("MEGATRON_HUATUO_CUDA") == "0":
        return None
    if os.environ.get("CUDA_HOME"):
        root = Path(os.environ["CUDA_HOME"])
        return root if (root / "bin" / "nvcc").is_file() else None
    if shutil.which("nvcc") is None:
        return None
    dry_run = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    found = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    return Path(found.group(1).strip()).resolve() if found else None


class BuildKernel(build_ext):
    """Compile csrc/: the .cpp files by the compiler of Python, the .cu file by nvcc, linked into one module."""

    def build_extension(self, extension: Extension) -> None:
        os.chdir(ROOT)
        RESOURCE_USAGE.unlink(missing_ok=True)
        home = cuda_home()
        if home is not None:
            try:
                self._add_cuda(extension, home)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"warning: nvcc failed, building without the CUDA kernel: {error}", file=sys.stderr)
        super().build_extension(extension)

    def _add_cuda(self, extension: Extension, home: Path) -> None:
        folder = Path(self.build_temp) / "csrc"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / "blend_order_cuda.o"
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
        newest = CUDA_ARCHITECTURES[-1]
        codes.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")  # PTX for later devices
        command = [str(home / "bin" / "nvcc"), "-c", "csrc/blend_order.cu", "-o", str(target), "-O3", "-std=c++17"]
        command += [*codes, "-Xcompiler", "-fPIC", "-Icsrc", "--resource-usage"]
        print(" ".join(command))
        compiled = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        sys.stderr.writelines(line for line in compiled.stderr.splitlines(True) if not USAGE_LINE.match(line))
        compiled.check_returncode()
        RESOURCE_USAGE.parent.mkdir(exist_ok=True)
        RESOURCE_USAGE.write_text(compiled.stderr)
        library = next(
            d for d in (home / "lib64", home / "targets" / "x86_64-linux" / "lib", home / "lib") if d.is_dir()
        )
        if not (library / "libcudart_static.a").is_file():
            raise OSError(f"{library / 'libcudart_static.a'} is missing")
        extension.extra_objects.append(str(target))
        extension.define_macros.append(("MEGATRON_HUATUO_CUDA", "1"))
        extension.library_dirs.append(str(library))
        extension.libraries += ["cudart_static", "dl", "rt"]


kernel = Extension(
    "megatron_huatuo._C",
    sources=[
        "csrc/assemble_rows.cpp",
        "csrc/bindings.cpp",
        "csrc/blend_order.cpp",
        "csrc/pack_rows.cpp",
        "csrc/pair_merges.cpp",
        "csrc/vector_kernels.cpp",
    ],
    depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*.*"))],
    include_dirs=["csrc", pybind11_include()],
    # No -march=native: one build runs everywhere and picks its instruction set at run time.
    extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-g0"],
    extra_link_args=["-pthread"],
    language="c++",
)

setup(ext_modules=[kernel], cmdclass={"build_ext": BuildKernel})
