"""Collects one folder with which a bare machine (a GPU, Python, torch, no network) runs the GPU tests and benchmarks.

    KIT/run.sh            the one command there: benchmarks/gpu_kit_run.py of the tree below
    KIT/kit.json          for which Python, which versions, from which commit
    KIT/tree/             this checkout, changes included
    KIT/wheels/           megatron-core and every dependency at the pins of constraints.txt; never torch

The packages are listed nowhere: they follow the metadata of what is installed here, from the dependencies of pyproject.toml.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import ConfigError, exit_on_error
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.manifest import write_json

ROOT = Path(__file__).resolve().parents[1]
_ALSO = ("pytest", "pytest-timeout", "setuptools", "pybind11")
# torch is the machine's own, with its CUDA libraries. Nothing there draws curves, loads from a hub, or calls transformers' commands.
_LEFT_OUT = frozenset({"torch", "matplotlib", "tensorboard", "hf-xet", "typer"})
# Files that nothing there reads, by the patterns of fnmatch. The list of blocked web addresses is 17 of datatrove's 17.4 MB.
_UNREAD = {
    "datatrove": "datatrove/assets/url_filterblacklists*.tar.gz",
    "numpy": "numpy/*/tests/*",
    "zstandard": "zstandard/_cffi.*",  # the second of two ways to call the same library
}
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")


@dataclass
class KitSettings:
    """What is collected, and where it goes."""

    output: str = "runs/gpu_kit"
    """Folder of the kit; an older kit there is replaced."""
    python_version: str = "3.12"
    """Of the machine that the kit is for."""
    max_megabytes: float = 60.0
    """A larger kit is refused."""


def read_pins(constraints: str) -> dict[str, str]:
    """Version by canonical name, from the text of constraints.txt."""
    lines = (line.split("#")[0].strip() for line in constraints.splitlines())
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}


def needed_packages(roots: Iterable[str], python_version: str, left_out: frozenset[str] = _LEFT_OUT) -> list[str]:
    """Canonical names of `roots` (requirements) and of what they require, by the metadata of what is installed here."""
    environment: dict[str, Any] = {
        **default_environment(),
        "python_version": python_version,
        "python_full_version": python_version,
    }
    waiting, seen = [Requirement(root) for root in roots], set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if name in left_out or (name, extra) in seen or not _applies(requirement, {**environment, "extra": ""}):
                continue
            seen.add((name, extra))
            for text in importlib.metadata.requires(name) or []:
                found = Requirement(text)
                if _applies(found, {**environment, "extra": extra}):
                    found.marker = None
                    waiting.append(found)
    return sorted({name for name, _ in seen})


def _applies(requirement: Requirement, environment: Mapping[str, Any]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(dict(environment))


def pinned(names: Iterable[str], pins: Mapping[str, str]) -> list[str]:
    """`name==version` of each. Raises ConfigError naming those without a pin."""
    names = list(names)
    if missing := [name for name in names if name not in pins]:
        raise ConfigError(
            f"packages without a version: got {', '.join(missing)}, need a pin for each in constraints.txt. Add them."
        )
    return [f"{name}=={pins[name]}" for name in names]


def download_wheels(requirements: list[str], directory: Path, python_version: str) -> None:
    """Fetch the wheels for x86-64 Linux and CPython `python_version`. Raises ConfigError with pip's last line."""
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version, *platforms]
    done = subprocess.run([*command, *target, "-d", str(directory), *requirements], capture_output=True, text=True)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-1:] or [done.stderr[-500:]]
        raise ConfigError(
            f"wheels cannot be fetched: pip ended with {done.returncode}, {last[0]}. "
            "Need a package registry that pip reaches; collect the kit on a machine with a network."
        )


def drop_unread(directory: Path, unread: Mapping[str, str] = _UNREAD) -> None:
    """Take the files out of the wheels that nothing here reads."""
    for package, pattern in unread.items():
        for wheel in directory.glob(f"{package}-*.whl"):
            smaller = wheel.with_suffix(".smaller")
            with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
                for entry in old.infolist():
                    if not fnmatch.fnmatch(entry.filename, pattern):
                        new.writestr(entry, old.read(entry))
            smaller.replace(wheel)


def copy_tree(source: Path, target: Path) -> None:
    """Every file of the checkout as it lies there now, but what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def size_mb(directory: Path) -> float:
    """Megabytes (10^6 bytes) of all files below."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def collect(settings: KitSettings, source: Path = ROOT) -> Path:
    """Build the kit and return its folder. Raises ConfigError when it is too large; an older kit then stays."""
    project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
    names = needed_packages([*project["dependencies"], *_ALSO], settings.python_version)
    requirements = pinned(names, read_pins((source / "constraints.txt").read_text("utf-8")))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True)
    with atomic_directory(settings.output, replace=True) as kit:
        copy_tree(source, kit / "tree")
        download_wheels(requirements, kit / "wheels", settings.python_version)
        drop_unread(kit / "wheels")
        content = {"python": settings.python_version, "commit": commit.stdout.strip(), "packages": requirements}
        write_json(kit / "kit.json", content)
        start = kit / "run.sh"
        start.write_text(
            "#!/bin/sh\n# PYTHON=... for another Python than python3; --help says the rest.\n"
            'exec "${PYTHON:-python3}" "$(dirname "$0")/tree/benchmarks/gpu_kit_run.py" "$@"\n'
        )
        start.chmod(0o755)
        megabytes = size_mb(kit)
        if megabytes > settings.max_megabytes:
            raise ConfigError(
                f"kit is too large: got {megabytes:.1f} MB, need at most {settings.max_megabytes:g}. "
                "Leave out what is large, or raise --max_megabytes."
            )
    return Path(settings.output)


@exit_on_error
def main() -> int:
    """Collect the kit and say how large it is."""
    parser = argument_parser(__doc__ or "")
    parser.add_class_arguments(KitSettings)
    kit = collect(KitSettings(**vars(parser.parse_args())))
    print(f"{kit}: {size_mb(kit):.1f} MB, {len(os.listdir(kit / 'wheels'))} wheels. There: {kit.name}/run.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
