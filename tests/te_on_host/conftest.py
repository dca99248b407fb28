"""Runs under the harness: every rank a process of its own, forked from one that has the libraries loaded; without the harness's packages every test skips and says why."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engine import launch_rank, make_config, read_log
from tests.distributed.runner import started_ranks
from tests.ports import free_port
from tests.te_on_host import environment
from tests.unit.convert.small_models import SMALL, write_model

ROOT = Path(__file__).parents[2]
# Widths that Transformer Engine's and flash-attn's kernels take, and that two tensor-parallel ranks divide.
_SIZES = {"num_layers": 2, "hidden_size": 128, "ffn_hidden_size": 192, "vocab_size": 2048}
_HEADS = {"num_attention_heads": 4, "head_dim": 32}
_GROUPS = {"llama": 2, "qwen2-tied": 2, "qwen3-tied": 2, "gemma3": 1, "baichuan2-rope": 4, "baichuan2-alibi": 4}
STEPS = 4


@pytest.fixture(autouse=True, scope="session")
def _harness() -> None:
    reason = environment.obstacle()
    if reason is not None:
        pytest.skip(f"no Transformer Engine to run on this host: {reason}")


@dataclass(frozen=True)
class Outcome:
    """What a run under the harness left: exit codes and prints of its ranks, its log, and what rank 0 reached."""

    codes: list[int]
    output: str
    log: list[dict[str, Any]]
    reached: dict[tuple[str, ...], int]

    def curve(self, name: str) -> list[float]:
        """A number of every step."""
        return [line[name] for line in self.log]

    def attention(self) -> set[tuple[str, ...]]:
        """(class, layer, layout, mask, window) of Transformer Engine's attentions that ran."""
        return {what[1:] for what in self.reached if what[0] == "attention"}

    def count(self, *what: str) -> int:
        """How often something happened whose name begins so."""
        return sum(number for name, number in self.reached.items() if name[: len(what)] == what)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """model(name): a Hugging Face directory with random weights of two layers."""
    made: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in made:
            sizes = {**_SIZES, **_HEADS, "num_query_groups": _GROUPS[name]}
            made[name] = write_model(tmp_path_factory.mktemp(name) / "hf", dataclasses.replace(SMALL[name], **sizes))
        return made[name]

    return model


@pytest.fixture(scope="session")
def sections(model: Callable[[str], Path]) -> Callable[..., dict[str, dict[str, Any]]]:
    """sections(name, tp=1, **changes): settings of a run of four steps of four rows."""

    def sections(name: str, *, tp: int = 1, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
        directory = str(model(name))
        settings: dict[str, dict[str, Any]] = {
            "model": {"preset": None, "hf": directory, "init_from": directory},
            "training": {"train_iters": STEPS, "micro_batch_size": 2, "precision": "bf16"},
            "parallel": {"tensor_model_parallel_size": tp, "sequence_parallel": tp > 1},
        }
        return {key: {**settings.get(key, {}), **changes.get(key, {})} for key in settings.keys() | changes.keys()}

    return sections


@pytest.fixture(scope="session")
def on_host(sample_blend: Path) -> Callable[..., list[dict[str, Any]]]:
    """on_host(run_dir, sections): the log of the same run on the project's own path for CPUs."""

    def on_host(run_dir: Path, sections: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        config = make_config(run_dir, sample_blend, **sections)
        with started_ranks(config.parallel.tensor_model_parallel_size, launch_rank, config) as ranks:
            codes = ranks.wait(500)
            assert not any(codes), ranks.output()[-4000:]
        return read_log(run_dir)

    return on_host


@pytest.fixture(scope="session")
def on_engine(sample_blend: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Outcome]]:
    """on_engine(run_dir, sections, capability=90, flash_attn=None, fp32_layers=False): a run with
    the libraries' Python. flash_attn: a version, or None for its absence."""
    hosts: dict[tuple[Any, ...], subprocess.Popen[str]] = {}
    logs = tmp_path_factory.mktemp("hosts")

    def on_engine(
        run_dir: Path,
        sections: dict[str, dict[str, Any]],
        *,
        capability: int = 90,
        flash_attn: str | None = None,
        fp32_layers: bool = False,
        **changes: str,
    ) -> Outcome:
        key = (capability, flash_attn, fp32_layers)
        if key not in hosts:
            hosts[key] = _start_host(logs / f"{len(hosts)}.log", *key)
        run_dir.mkdir(parents=True, exist_ok=True)
        report, ranks = run_dir / "reached.json", sections["parallel"]["tensor_model_parallel_size"]
        run = {"run_dir": str(run_dir), "blend": str(sample_blend), "sections": sections, "report": str(report)}
        codes, output = _ask(hosts[key], run, _places(run_dir, ranks, changes))
        log = read_log(run_dir) if (run_dir / "log.jsonl").is_file() else []
        counts = json.loads(Path(f"{report}.0").read_text()) if Path(f"{report}.0").is_file() else []
        return Outcome(codes, output, log, {tuple(what): count for *what, count in counts})

    yield on_engine
    for host in hosts.values():
        host.kill()


def _start_host(log: Path, capability: int, flash_attn: str | None, fp32_layers: bool) -> subprocess.Popen[str]:
    """A process that loads the libraries of one device once and forks its runs (`worker.py`)."""
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("NVTE_", "PYTHON"))},
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *_stand_ins(flash_attn)])),
        "HARNESS_CAPABILITY": str(capability),
        "NVTE_PROJECT_BUILDING": "1",  # Transformer Engine loads no libraries when it is imported
        "TORCHDYNAMO_DISABLE": "1",  # compiling for the CPU takes longer than the runs, and proves nothing of GPUs
        "OMP_NUM_THREADS": "1",
    }
    settings = {"capability": capability, "fp32_layers": fp32_layers}
    command = [sys.executable, *(["-O"] if fp32_layers else []), "-m", "tests.te_on_host.worker", json.dumps(settings)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log.open("w"), "text": True}
    host = subprocess.Popen(command, env=variables, cwd=ROOT, **pipes)
    host.log = log  # type: ignore[attr-defined]
    return host


def _stand_ins(flash_attn: str | None) -> list[Path]:
    if flash_attn is None:
        return []
    return [environment.flash_attn_path(flash_attn), Path(__file__).parent / "stand_ins"]


def _places(run_dir: Path, ranks: int, changes: dict[str, str]) -> list[dict[str, Any]]:
    """Log and environment of each rank, as a launcher gives them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [
        {
            "log": str(run_dir / f"rank{rank}.log"),
            "environment": {"RANK": str(rank), "LOCAL_RANK": str(rank), **world, **address, **changes},
        }
        for rank in range(ranks)
    ]


def _ask(host: Any, run: dict[str, Any], places: list[dict[str, Any]]) -> tuple[list[int], str]:
    """Exit codes of the ranks, and what they printed."""
    host.stdin.write(json.dumps({**run, "ranks": places}) + "\n")
    host.stdin.flush()
    answer = host.stdout.readline()
    assert answer, f"the process that loads the libraries ended\n{host.log.read_text()[-4000:]}"
    return json.loads(answer), "\n".join(Path(place["log"]).read_text(errors="replace") for place in places)
