"""The budget of the CUDA kernel: what the compiler reported, what the build shows of it, what fits side by side, what is refused."""

from __future__ import annotations

import runpy
from pathlib import Path
from unittest import mock

import pytest
from setuptools import Distribution, Extension

from benchmarks.kernel_budget import Usage, blocks_per_multiprocessor, check, read_report
from megatron_huatuo.errors import ConfigError


def _report(
    architecture: str, registers: int, stores: int, loads: int, shared: int, name: str = "order_kernelIhjEE"
) -> str:
    """As nvcc 13.0 writes it."""
    return (
        f"ptxas info    : Compiling entry function '{name}' for 'sm_{architecture}'\n"
        f"ptxas info    : Function properties for {name}\n"
        f"    2256 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers, 2256 bytes cumulative stack size, {shared} bytes smem\n"
        "ptxas info    : Compile time = 604.719 ms\n"
    )


GOOD = _report("90", 64, 48, 172, 3504) + _report("80", 64, 48, 172, 3504) + _report("80", 60, 0, 0, 3504, "other")


def test_usage_is_read_per_architecture_and_kernel() -> None:
    usages = read_report("ptxas info    : 0 bytes gmem\n" + GOOD)
    assert usages["80", "order_kernelIhjEE"] == Usage(64, 220, 3504) and usages["80", "other"] == Usage(60, 0, 3504)
    assert len(usages) == 3


def test_the_build_shows_warnings_and_keeps_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings = (
        'csrc/blend_order.cu(7): warning #177-D: variable "unused" was declared but never referenced\n      int unused;\n'
        "          ^\n\nptxas info    : (C7508) Potential Performance Loss: wgmma.mma_async is serialized\n"
    )
    (tmp_path / "said").write_text("ptxas info    : 0 bytes gmem\n" + GOOD + warnings)
    for name in ("bin/nvcc", "lib64/libcudart_static.a"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with mock.patch("setuptools.setup"):
        build = runpy.run_path(str(Path(__file__).parents[3] / "setup.py"))["BuildKernel"](Distribution())
    build.build_temp = str(tmp_path)
    monkeypatch.setitem(build._add_cuda.__globals__, "RESOURCE_USAGE", tmp_path / "build" / "report")
    build._add_cuda(Extension("kernel", []), tmp_path)
    assert capfd.readouterr().err == warnings
    assert len(check(tmp_path / "build" / "report")) == 2


def test_blocks_are_those_of_the_occupancy_calculator() -> None:
    """The review counted 6 and 5 without launch bounds; 48 bytes of shared memory cost sm_80 its eighth block."""
    assert blocks_per_multiprocessor(Usage(80, 0, 3632), "80", 128, 16384) == 6
    assert blocks_per_multiprocessor(Usage(96, 0, 3632), "90", 128, 16384) == 5
    assert blocks_per_multiprocessor(Usage(64, 0, 3632), "80", 128, 16384) == 7
    assert blocks_per_multiprocessor(Usage(64, 0, 3584), "80", 128, 16384) == 8
    assert blocks_per_multiprocessor(Usage(32, 0, 0), "90", 128, 0) == 16  # 2,048 threads
    assert blocks_per_multiprocessor(Usage(32, 0, 0), "90", 32, 0) == 32


def test_a_kernel_within_the_budget_is_one_line_per_architecture(tmp_path: Path) -> None:
    (tmp_path / "report").write_text(GOOD)
    of_80, of_90 = check(tmp_path / "report")
    assert of_80.startswith("sm_80: 2 kernels, at most 64 registers, 220 bytes of spills, 3,504 + 16,384 bytes")
    assert of_90.endswith("8 blocks of 128 threads per multiprocessor")


@pytest.mark.parametrize(
    ("registers", "spills", "shared", "said"),
    [
        (65, 0, 3504, r"got 65 registers, need at most 64, got 7 blocks per multiprocessor, need 8"),
        (64, 100, 3504, r"got 272 bytes of spills, need at most 256"),
        (64, 0, 3585, r"got 3585 bytes of static shared memory, need at most 3584"),
    ],
)
def test_a_kernel_above_the_budget_is_named(
    tmp_path: Path, registers: int, spills: int, shared: int, said: str
) -> None:
    (tmp_path / "report").write_text(GOOD + _report("80", registers, spills, 172 if spills else 0, shared, "grown"))
    with pytest.raises(ConfigError, match=rf"the CUDA kernel takes more than its budget: sm_80 grown: {said}"):
        check(tmp_path / "report")


def test_a_report_without_an_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report").write_text(_report("80", 64, 48, 172, 3504))
    with pytest.raises(ConfigError, match=r"no kernel for sm_90 in nvcc's report: got 1 kernels, need .* Build again"):
        check(tmp_path / "report")
