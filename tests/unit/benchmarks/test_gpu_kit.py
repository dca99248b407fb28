"""The kit for a bare GPU machine: what is collected, what is left behind when time or the machine runs out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import gpu_kit, gpu_kit_run
from benchmarks.gpu_kit import KitSettings, collect, download_wheels, drop_unread, needed_packages, pinned, read_pins
from benchmarks.gpu_kit_run import STEPS, Step, run_steps
from megatron_huatuo.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_every_dependency_of_the_project_is_collected_with_its_pin_and_torch_is_not() -> None:
    names = needed_packages(["torch>=2.7", "megatron-core", "transformers", "numpy", "pytest"], "3.12")
    assert {"megatron-core", "transformers", "tokenizers", "huggingface-hub", "pluggy", "packaging"} <= set(names)
    assert "numpy" in names and not {"torch", "triton", "sympy", "ruff", "pydantic"} & set(names)
    wanted = pinned(names, read_pins((ROOT / "constraints.txt").read_text("utf-8")))
    assert "megatron-core==0.16.1" in wanted and len(wanted) == len(names)


def test_a_package_without_a_pin_is_named() -> None:
    with pytest.raises(ConfigError, match=r"packages without a version: got b, need a pin for each in constraints.txt"):
        pinned(["a", "b"], read_pins("# a comment\nA==1.0\n"))


def test_unread_files_are_taken_out_of_wheels_and_all_else_stays(tmp_path: Path) -> None:
    wheel = tmp_path / "big-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("big/lists/2026.gz", b"x" * 1000)
        archive.writestr("big/__init__.py", "answer = 42\n")
    drop_unread(tmp_path, {"big": "big/*/*.gz"})
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == ["big/__init__.py"] and archive.read("big/__init__.py") == b"answer = 42\n"


@pytest.mark.slow
def test_without_a_registry_the_kit_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"wheels cannot be fetched: pip ended with 1, .*collect the kit on a machine"
    ):
        download_wheels(["orjson==3.13.0"], tmp_path / "wheels", "3.12")


def test_the_tree_travels_with_its_changes_and_a_kit_that_is_too_large_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_kit, "download_wheels", lambda requirements, folder, version: folder.mkdir())
    source = tmp_path / "source"
    (source / "benchmarks").mkdir(parents=True)
    for name in ("constraints.txt", "pyproject.toml", "benchmarks/gpu_kit_run.py"):
        shutil.copy2(ROOT / name, source / name)
    (source / ".gitignore").write_text("*.so\n")
    (source / "kernel.so").write_bytes(b"\x00")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", str(source)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (source / "new.txt").write_text("not committed yet")
    kit = collect(KitSettings(output=str(tmp_path / "kit")), source)
    assert (kit / "tree" / "new.txt").is_file() and not (kit / "tree" / "kernel.so").exists()
    assert os.access(kit / "run.sh", os.X_OK) and json.loads((kit / "kit.json").read_text())["python"] == "3.12"
    with pytest.raises(ConfigError, match=r"kit is too large: got 0.0 MB, need at most 0.01"):
        collect(KitSettings(output=str(kit), max_megabytes=0.01), source)
    assert (kit / "run.sh").is_file()
    wrong = subprocess.run(
        [kit / "run.sh"], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True
    )
    if sys.version_info[:2] != (3, 12):
        assert wrong.returncode == 2 and "need 3.12, for which the wheels of this kit are" in wrong.stderr


@pytest.mark.slow
def test_real_wheels_fit_the_limit(tmp_path: Path) -> None:
    try:
        kit = collect(KitSettings(output=str(tmp_path / "kit")))
    except ConfigError as error:
        if "wheels cannot be fetched" not in str(error):
            raise
        pytest.skip(f"needs a package registry: {error}")
    assert list((kit / "wheels").glob("megatron_core-0.16.1-cp312-*.whl")) and gpu_kit.size_mb(kit) <= 60


def test_steps_of_the_kit_are_the_commands_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    asked = {line.split("$(PYTHON) ")[1] for line in makefile.splitlines() if line.startswith("\t$(PYTHON) ")}
    asked = {re.sub(r" --json \S+", "", line) for line in asked}
    ours = {" ".join(step.arguments).replace(" --json {output}/", " --json ") for step in STEPS}
    benchmarks = {re.sub(r" --json \S+", "", line) for line in ours if line.startswith("tools/")}
    assert benchmarks == {line for line in asked if line.startswith("tools/")}
    tested = {line.rsplit("/", 1)[1] for line in ours if "-m pytest" in line}
    assert tested == {path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert "-m pytest -m gpu tests/gpu" in asked and "setup.py -q build_ext --inplace" in asked & ours


def test_attention_is_known_before_the_kernel_is_built_and_what_needs_the_kernel_comes_after_it() -> None:
    """nvcc may take minutes on a bare machine: one that is taken away meanwhile has given its first results."""
    names = [step.name for step in STEPS]
    kernel = names.index("kernel")
    assert {"tests: test_backbones_attention", "tests: test_transformer_engine_attention"} <= set(names[:kernel])
    assert {"tests: test_blend_order", "benchmark: blend"} <= set(names[kernel:]) and STEPS[kernel].limit_s == 240


@pytest.mark.parametrize(("options", "unpacked"), [([], False), (["-S"], True)])  # -S: without what is installed
def test_numpy_of_the_machine_is_preferred(tmp_path: Path, options: list[str], unpacked: bool) -> None:
    (tmp_path / "kit" / "tree").mkdir(parents=True)
    (tmp_path / "kit" / "wheels").mkdir()
    for name in ("numpy", "other"):
        with zipfile.ZipFile(tmp_path / "kit" / "wheels" / f"{name}-2.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
    code = f"from benchmarks.gpu_kit_run import *; prepare(Path({str(tmp_path / 'kit')!r}), Path({str(tmp_path / 'work')!r}))"
    subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, check=True)
    site = tmp_path / "work" / "site"
    assert (site / "other").is_dir() and (site / "numpy").is_dir() == unpacked


@pytest.mark.slow
def test_what_is_known_is_on_disk_after_every_step_and_the_budget_ends_the_run(tmp_path: Path) -> None:
    """Three real processes: one passes, one hangs with a test that has ended before, one comes too late."""
    (tmp_path / "test_it.py").write_text(
        "import time, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'these | differ'\n"
        "@pytest.mark.skip(reason='no such card')\ndef test_skipped(): pass\n"
        "def test_hangs(): time.sleep(600)\n"
    )
    output = tmp_path / "output"
    output.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GPU_KIT_TESTS": str(output / "tests.jsonl")}
    read = f"import json; print([one['outcome'] for one in json.load(open({str(output / 'results.json')!r}))['steps']])"
    steps = (
        Step("first", ("-c", "pass"), 60, needs_gpu=False),
        Step("second", ("-c", read), 60, needs_gpu=False),
        Step("card", ("-c", "raise SystemExit(1)"), 60),
        Step("hanging", ("-m", "pytest", "-p", "benchmarks.gpu_kit_run", "test_it.py"), 600, needs_gpu=False),
        Step("late", ("-c", "pass"), 60, needs_gpu=False),
    )
    results = run_steps(steps, tmp_path, output, environment, budget_s=14, facts={"gpus": 0})
    outcomes = {one["step"]: one["outcome"] for one in results["steps"]}
    assert outcomes == {
        "first": "done",
        "second": "done",
        "card": "skipped",
        "hanging": "out of time",
        "late": "not run",
    }
    assert (output / "logs" / "second.log").read_text().strip() == "['done', 'running']"
    tests = {one["test"].split("::")[1]: one for one in json.loads((output / "results.json").read_text())["tests"]}
    assert {name: one["outcome"] for name, one in tests.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
    }
    table = (output / "results.md").read_text()
    assert "| card | skipped | 0.0 | no CUDA device on this machine |" in table
    assert "these \\| differ" in table and "no such card" in table


def test_a_failing_step_shows_the_end_of_its_output(tmp_path: Path) -> None:
    step = Step("broken", ("-c", "print('why it broke'); raise SystemExit(3)"), 60, needs_gpu=False)
    [record] = run_steps((step,), tmp_path, tmp_path, dict(os.environ), 60, {"gpus": 0})["steps"]
    assert record["outcome"] == "failed" and record["detail"] == "exit code 3: why it broke"
    assert gpu_kit_run.markdown({"machine": {"torch": "2.11"}, "steps": [], "tests": [], "figures": []}).startswith(
        "# First"
    )
