"""Holds what nvcc reports of the CUDA kernel (registers, spills, shared memory) against a budget, for sm_80 and sm_90.

The build (setup.py) keeps the report of the very code that it links, so this compiles nothing. One thread of a block
shuffles while the others wait: what hides that chain is blocks side by side, so a block less is a loss of speed, and a
spill more is one in the loops. Counted from the compiler's report, never measured on a GPU.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_huatuo.errors import ConfigError, exit_on_error

ROOT = Path(__file__).resolve().parents[1]
_REPORT = ROOT / "build" / "cuda_resource_usage.txt"
_SOURCE = ROOT / "csrc" / "blend_order.cu"
_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
# Of one multiprocessor, by compute capability (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
_SHARED_BYTES = {"80": 164 * 1024, "90": 228 * 1024}
_REGISTERS, _WARPS, _BLOCKS = 65536, 64, 32
_SHARED_BYTES_OF_THE_SYSTEM = 1024  # per block


@dataclass(frozen=True)
class Usage:
    """What one kernel takes, per thread or per block, and what may at most be taken."""

    registers: int
    spill_bytes: int
    """Stores and loads together, as instructions stand in the code."""
    shared_bytes: int
    """Static ones."""


# Of nvcc 13.0: 64 registers, 48 + 172 bytes of spills. Without launch bounds it takes 80 registers and 52 + 164 bytes on
# sm_80, 96 and none on sm_90: 6 and 5 blocks.
BUDGET = Usage(registers=64, spill_bytes=256, shared_bytes=3584)
LEAST_BLOCKS = 8


def read_report(text: str) -> dict[tuple[str, str], Usage]:
    """Usage by (architecture such as "80", mangled name of the kernel), from what ptxas wrote."""
    found = dict[tuple[str, str], Usage]()
    for match in _KERNEL.finditer(text):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        usage = Usage(
            int(match["registers"]), int(match["stores"]) + int(match["loads"]), int(shared[1]) if shared else 0
        )
        found[match["architecture"], match["name"]] = usage
    return found


def blocks_per_multiprocessor(usage: Usage, architecture: str, threads: int, dynamic_shared_bytes: int) -> int:
    """Blocks that fit side by side.

    Registers are given to a warp in units of 256, to four partitions of warps; shared memory in units of 128 bytes.

    >>> blocks_per_multiprocessor(Usage(80, 0, 3632), "80", 128, 16384)
    6
    >>> blocks_per_multiprocessor(Usage(64, 0, 3632), "80", 128, 16384)  # shared memory is the limit
    7
    """
    warps = -(-threads // 32)
    registers_of_a_warp = -(-usage.registers * 32 // 256) * 256
    shared = -(-(usage.shared_bytes + dynamic_shared_bytes + _SHARED_BYTES_OF_THE_SYSTEM) // 128) * 128
    by_registers = _REGISTERS // 4 // registers_of_a_warp * 4 // warps
    return min(_BLOCKS, _WARPS // warps, by_registers, _SHARED_BYTES[architecture] // shared)


def launch_of(source: str) -> tuple[int, int]:
    """Threads and bytes of dynamic shared memory of a block, from the constants of blend_order.cu."""
    constants = dict(re.findall(r"constexpr int (kThreads|kSharedDraws) = (\d+);", source))
    return int(constants["kThreads"]), 2 * int(constants["kSharedDraws"])


def over_budget(usage: Usage, blocks: int) -> list[str]:
    """What is above the budget, in words; empty when all is within it."""
    pairs = (
        ("registers", usage.registers, BUDGET.registers),
        ("bytes of spills", usage.spill_bytes, BUDGET.spill_bytes),
        ("bytes of static shared memory", usage.shared_bytes, BUDGET.shared_bytes),
    )
    over = [f"got {got} {what}, need at most {most}" for what, got, most in pairs if got > most]
    few = [f"got {blocks} blocks per multiprocessor, need {LEAST_BLOCKS}"] if blocks < LEAST_BLOCKS else []
    return over + few


def check(report: Path, source: Path = _SOURCE) -> list[str]:
    """One line per architecture, of its most demanding kernel. Raises ConfigError naming each kernel above the budget."""
    threads, dynamic = launch_of(source.read_text("utf-8"))
    usages = read_report(report.read_text("utf-8"))
    if missing := [name for name in _SHARED_BYTES if name not in {architecture for architecture, _ in usages}]:
        raise ConfigError(
            f"no kernel for sm_{missing[0]} in nvcc's report: got {len(usages)} kernels, need the resource usage of "
            f"sm_80 and sm_90 ({report}). Build again with setup.py build_ext --inplace."
        )
    lines, failures = [], []
    for architecture in _SHARED_BYTES:
        of_it = {name: usage for (found, name), usage in usages.items() if found == architecture}
        for name, usage in of_it.items():
            over = over_budget(usage, blocks_per_multiprocessor(usage, architecture, threads, dynamic))
            failures += [f"sm_{architecture} {name}: {', '.join(over)}"] if over else []
        most = Usage(
            max(usage.registers for usage in of_it.values()),
            max(usage.spill_bytes for usage in of_it.values()),
            max(usage.shared_bytes for usage in of_it.values()),
        )
        blocks = blocks_per_multiprocessor(most, architecture, threads, dynamic)
        lines.append(
            f"sm_{architecture}: {len(of_it)} kernels, at most {most.registers} registers, {most.spill_bytes} bytes of spills, "
            f"{most.shared_bytes:,} + {dynamic:,} bytes of shared memory; {blocks} blocks of {threads} threads per multiprocessor"
        )
    if failures:
        raise ConfigError(
            f"the CUDA kernel takes more than its budget: {'; '.join(failures)} ({report}). Change csrc/blend_order.cu, or "
            "change benchmarks/kernel_budget.py and say why in docs/performance_log.md."
        )
    return lines


@exit_on_error
def main() -> int:
    """Print what the kernel takes; 1 when it is more than the budget."""
    if not _REPORT.is_file():
        print(f"CUDA kernel: budget not checked, since the build had no nvcc (no {_REPORT.relative_to(ROOT)})")
        return 0
    print("\n".join(check(_REPORT)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
