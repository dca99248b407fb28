"""What the harness needs besides the project's own environment: pinned wheels of Transformer Engine and flash-attn's Python.

`python -m tests.te_on_host.environment` downloads what is missing, once: about 1.5 GB from a package registry, 2.5 GB of disk, some
minutes. Nothing is compiled but `fake_device.c`, so neither nvcc nor torch's CUDA build is needed. What cannot be had is
written down as the reason for which the tests skip. MEGATRON_HUATUO_TE names another folder than ~/.cache/megatron_huatuo/….
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ENGINE = "2.11.0"
# The newest that Transformer Engine takes, and one that it does not.
FLASH_ATTN, NEWER_FLASH_ATTN = "2.8.3", "2.8.3.post2"
# Its Python, its C++ (which knows what cuDNN can), the libraries that this loads, and CUDA's headers.
_WHEELS = (
    f"transformer-engine=={ENGINE}",
    f"transformer-engine-cu13=={ENGINE}",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cublas==13.1.1.3",
    "nvidia-cudnn-cu13==9.20.0.48",
    # What Transformer Engine's Python imports beyond the project's own packages.
    "triton==3.7.1",
    "einops==0.8.2",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
    "onnx-ir==1.1.0",
    "ml-dtypes==0.6.0",
    "importlib-metadata==10.2.0",
    "zipp==4.1.2",
)
_HERE = Path(__file__).parent


def folder() -> Path:
    """Where the packages lie, outside the checkout: they outlive it, and several share them."""
    named = os.environ.get("MEGATRON_HUATUO_TE")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}-te{ENGINE}"
    return Path(named) if named else Path.home() / ".cache" / "megatron_huatuo" / version


def packages() -> Path:
    """Folder of the pinned wheels, which comes last in sys.path."""
    return folder() / "packages"


def flash_attn_path(version: str) -> Path:
    """Folder that holds the Python of a version of flash-attn, and its name and version for importlib.metadata."""
    return folder() / f"flash-attn-{version}"


def fake_device() -> Path:
    """The library of `fake_device.c`."""
    return folder() / "fake_device.so"


def obstacle() -> str | None:
    """Why the harness cannot run here; None when it can."""
    if (folder() / "ready").is_file():
        return None
    reason = folder() / "obstacle"
    return reason.read_text().strip() if reason.is_file() else f"{folder()} is not there: run `make test-te`"


class CannotBuild(Exception):
    """Something that this machine lacks."""


def build() -> None:
    """Make what is missing. Raises: CannotBuild with the reason."""
    if not packages().is_dir():
        part = folder() / "packages.part"
        shutil.rmtree(part, ignore_errors=True)
        _run([*_PIP, "install", "-q", "--no-deps", "--target", str(part), *_WHEELS], "install pinned wheels")
        part.rename(packages())
    for version in (FLASH_ATTN, NEWER_FLASH_ATTN):
        if not flash_attn_path(version).is_dir():
            _unpack_flash_attn(version)
    source = _HERE / "fake_device.c"
    if not fake_device().is_file() or fake_device().stat().st_mtime < source.stat().st_mtime:
        include = packages() / "nvidia" / "cu13" / "include"
        command = ["cc", "-shared", "-fPIC", "-O1", f"-I{include}", str(source), "-o", str(fake_device())]
        _run(command, "compile fake_device.c")


_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def _run(command: list[str], what: str, **environment: str) -> None:
    print(f"+ {what}", flush=True)
    if subprocess.run(command, env={**os.environ, **environment}).returncode != 0:
        raise CannotBuild(f"failed: {what}")


def _unpack_flash_attn(version: str) -> None:
    """Its Python out of the source distribution, whose kernels are not compiled."""
    part = folder() / f"flash-attn-{version}.part"
    shutil.rmtree(part, ignore_errors=True)
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(part))
    command = [*_PIP, "download", "-q", *options, f"flash-attn=={version}"]
    _run(command, f"download flash-attn {version}", FLASH_ATTENTION_SKIP_CUDA_BUILD="TRUE")
    [archive] = part.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(part, filter="data")
    archive.unlink()
    [source] = part.iterdir()
    shutil.copytree(source / "flash_attn", part / "flash_attn")
    names = part / f"flash_attn-{version}.dist-info"
    names.mkdir()
    shutil.copy(source / "PKG-INFO", names / "METADATA")
    shutil.rmtree(source)
    part.rename(flash_attn_path(version))


def main() -> None:
    """Build, or write down why not."""
    folder().mkdir(parents=True, exist_ok=True)
    for name in ("ready", "obstacle"):
        (folder() / name).unlink(missing_ok=True)
    try:
        build()
    except CannotBuild as error:
        (folder() / "obstacle").write_text(f"{error}\n")
        print(f"make test-te: the tests will be skipped: {error}", file=sys.stderr)
    else:
        (folder() / "ready").touch()


if __name__ == "__main__":
    main()
