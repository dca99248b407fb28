"""The command of a kit on a bare machine: builds the kernel, runs the GPU tests and benchmarks, writes what is known so far.

Invariant: results.json and results.md in the output folder are complete after every test and every step, so a machine
that is taken away leaves what it has measured. Standard library only; torch is the machine's own. `pytest -p` loads this
file as well, to hear of each test as it ends.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TESTS_FILE = "GPU_KIT_TESTS"
_NO_GPU = "no CUDA device on this machine"
_MACHINE = """
import importlib.metadata as metadata, json, platform, torch
facts = {"python": platform.python_version(), "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
if facts["gpus"]:
    gpu = torch.cuda.get_device_properties(0)
    facts.update(gpu=gpu.name, capability=f"{gpu.major}.{gpu.minor}", memory_gib=round(gpu.total_memory / 2**30, 1))
for name in ("torch", "numpy", "megatron-core", "transformers", "triton", "transformer-engine", "flash-attn", "apex"):
    try:
        facts[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        facts[name] = None
print(json.dumps(facts))
"""
_IMPORTS = (
    "import benchmarks.blend, benchmarks.train, megatron_huatuo.train.loop, tests.distributed.engine, pytest_timeout"
)


@dataclass(frozen=True)
class Step:
    """Arguments of Python, run in the tree; `{output}` in them is the output folder."""

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    needs_gpu: bool = True


def _tests(file: str, limit_s: float) -> Step:
    plugin = ("-p", "benchmarks.gpu_kit_run")
    return Step(f"tests: {file}", ("-m", "pytest", "-m", "gpu", *plugin, f"tests/gpu/{file}.py"), limit_s, False)


def _benchmark(name: str, *options: str, limit_s: float) -> Step:
    file = f"{{output}}/{name}-gpu.json"
    arguments = ("tools/benchmark.py", name, "--device", "cuda", *options, "--json", file)
    return Step(f"benchmark: {name}", arguments, limit_s)


# What says most per second comes first. The limits add up to more than the budget: few steps come near theirs.
STEPS = (
    Step("packages of the kit", ("-c", _IMPORTS), 120, needs_gpu=False),
    _tests("test_backbones_attention", 150),
    _tests("test_transformer_engine_attention", 120),
    Step("kernel", ("setup.py", "-q", "build_ext", "--inplace"), 240, needs_gpu=False),
    _tests("test_blend_order", 120),
    _benchmark("train", "--size", "7b-cut", "--ranks", "1", limit_s=240),
    _tests("test_training", 300),
    _benchmark("blend", limit_s=240),
)


def pytest_runtest_logreport(report: Any) -> None:
    """pytest's hook: one line per test that has passed, failed or skipped, at once on disk."""
    file = os.environ.get(_TESTS_FILE)
    if file is None or (report.when != "call" and report.passed):
        return
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else report.longreprtext
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({**line, "detail": reason[-2000:]}) + "\n")


def run_steps(
    steps: tuple[Step, ...],
    tree: Path,
    output: Path,
    environment: dict[str, str],
    budget_s: float,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Run the steps in order until the budget is spent, and return what the output folder then says."""
    end, records = time.monotonic() + budget_s, list[dict[str, Any]]()

    def write() -> dict[str, Any]:
        results = {"machine": facts, "steps": records, "tests": _read_tests(output), "figures": _read_figures(output)}
        _replace(output / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        _replace(output / "results.md", markdown(results))
        return results

    for step in steps:
        record: dict[str, Any] = {"step": step.name, "outcome": "running", "seconds": 0.0, "detail": ""}
        records.append(record)
        left = end - time.monotonic()
        if step.needs_gpu and not facts.get("gpus"):
            record.update(outcome="skipped", detail=_NO_GPU)
        elif left < 5:
            record.update(outcome="not run", detail=f"the {budget_s:.0f} s are spent")
        else:
            write()
            record.update(_run(step, tree, output, environment, min(step.limit_s, left), write))
        write()
        print(
            f"{step.name:<44} {record['outcome']:<12} {record['seconds']:6.1f} s  {record['detail'][-200:]}", flush=True
        )
    return write()


def _run(
    step: Step, tree: Path, output: Path, environment: dict[str, str], limit_s: float, write: Callable[[], object]
) -> dict[str, Any]:
    """Outcome of one step; whatever it has started is ended with it."""
    log = output / "logs" / f"{step.name.replace(': ', '-').replace(' ', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    command = [sys.executable, *(argument.format(output=output) for argument in step.arguments)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = None
        try:
            while code is None and time.monotonic() - began < limit_s:
                try:
                    code = process.wait(min(2.0, max(0.05, limit_s - (time.monotonic() - began))))
                except subprocess.TimeoutExpired:
                    write()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = round(time.monotonic() - began, 1)
    if code == 0:
        return {"outcome": "done", "seconds": seconds}
    if code is None:
        return {"outcome": "out of time", "seconds": seconds, "detail": f"stopped after {limit_s:.0f} s"}
    tail = log.read_text("utf-8", errors="replace").strip()[-500:]
    return {"outcome": "failed", "seconds": seconds, "detail": f"exit code {code}: {tail}"}


def markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items() if value is not None)
    steps = [(one["step"], one["outcome"], f"{one['seconds']:.1f}", one["detail"]) for one in results["steps"]]
    tests = [(one["test"], one["outcome"], f"{one['seconds']:.1f}", one["detail"]) for one in results["tests"]]
    figures = [
        (
            one["name"],
            *(f"{one[key]:,.2f}" if one.get(key) is not None else "-" for key in ("ours", "peer", "ratio")),
            one["unit"],
        )
        for one in results["figures"]
    ]
    parts = [
        f"# First run on this machine\n\n{facts}\n",
        _table(("step", "outcome", "seconds", "detail"), steps),
        _table(("test", "outcome", "seconds", "detail"), tests),
        _table(("figure", "ours", "peer", "ratio", "unit"), figures),
    ]
    return "\n".join(part for part in parts if part)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows] if rows else []
    lines = (" | ".join(" ".join(cell.split()).replace("|", "\\|")[-300:] for cell in row) for row in cells)
    return "".join(f"| {line} |\n" for line in lines)


def _read_tests(output: Path) -> list[dict[str, Any]]:
    file = output / "tests.jsonl"
    lines = (
        file.read_text("utf-8").split("\n")[:-1] if file.is_file() else []
    )  # a line that is being written has no end
    return [json.loads(line) for line in lines]


def _read_figures(output: Path) -> list[dict[str, Any]]:
    return [record for file in sorted(output.glob("*-gpu.json")) for record in json.loads(file.read_text("utf-8"))]


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def prepare(kit: Path, work: Path) -> dict[str, str]:
    """Unpack the wheels and copy the tree into `work`; returns the environment of the steps. A kit may be read-only."""
    shutil.copytree(kit / "tree", work / "tree")
    wheels = sorted((kit / "wheels").glob("*.whl"))
    if _has_numpy():
        wheels = [wheel for wheel in wheels if not wheel.name.startswith("numpy-")]
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "site")
    for part in sorted((work / "site").glob("*.data/*lib")):
        shutil.copytree(part, work / "site", dirs_exist_ok=True)
    return {**os.environ, "PYTHONPATH": f"{work / 'site'}{os.pathsep}{work / 'tree'}", "PYTHONUNBUFFERED": "1"}


def _has_numpy() -> bool:
    """Whether the machine has a NumPy that is new enough: its torch was put together with it."""
    try:
        return int(importlib.metadata.version("numpy").split(".")[0]) >= 2
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> int:
    """Run a kit; 0 when no step and no test failed or ran out of time."""
    parser = argparse.ArgumentParser(description="Run this kit's GPU tests and benchmarks on this machine.")
    parser.add_argument("--output", default="gpu_kit_results", help="folder of results.json, results.md and logs/")
    parser.add_argument("--budget-s", type=float, default=520.0, help="seconds after which nothing runs any more")
    options = parser.parse_args()
    began, kit, output = time.monotonic(), Path(__file__).resolve().parents[2], Path(options.output).resolve()
    wanted, found = json.loads((kit / "kit.json").read_text("utf-8"))["python"], "{}.{}".format(*sys.version_info)
    if found != wanted:
        parser.error(
            f"wrong Python: got {found} ({sys.executable}), need {wanted}, for which the wheels of this kit are. "
            f"Set PYTHON, or collect a kit with make gpu-kit KIT_PYTHON={found}."
        )
    output.mkdir(parents=True, exist_ok=True)
    for stale in (output / "tests.jsonl", *output.glob("*-gpu.json")):
        stale.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_kit_") as name:
        environment = {**prepare(kit, Path(name)), _TESTS_FILE: str(output / "tests.jsonl")}
        told = subprocess.run([sys.executable, "-c", _MACHINE], env=environment, capture_output=True, text=True)
        if told.returncode:
            parser.error(f"no usable torch: {told.stderr.strip()[-300:]}. Need a Python that has torch; set PYTHON.")
        budget_s = options.budget_s - (time.monotonic() - began)
        results = run_steps(STEPS, Path(name) / "tree", output, environment, budget_s, json.loads(told.stdout))
    print(f"{output / 'results.md'}, {output / 'results.json'}: {time.monotonic() - began:.0f} s")
    bad = {"failed", "out of time", "not run"}
    return int(any(one["outcome"] in bad for one in [*results["steps"], *results["tests"]]))


if __name__ == "__main__":
    sys.exit(main())
