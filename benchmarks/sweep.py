"""Layouts, micro-batch sizes, recomputation and numbers of ranks, each as a real training run in processes of its own.

Invariant: whatever becomes of a case, its outcome is recorded and the next one starts.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import surroundings
from benchmarks.sample import build_sample_blend
from benchmarks.settings import SweepBenchmark
from benchmarks.sweep_case import Case, Outcome, run_case
from benchmarks.sweep_report import write_report
from megatron_huatuo.config import at_least, one_of, parse_config, read_yaml, to_plain
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.log import get_logger
from megatron_huatuo.plan.gpus import get_gpu
from megatron_huatuo.plan.layouts import layout_name, rank_layouts
from megatron_huatuo.plan.plan import Cluster, PlannedData, data_of_blend
from megatron_huatuo.storage.manifest import write_json
from megatron_huatuo.train.train_config import TrainConfig

_PACKAGES = ("torch", "megatron-core")


def run(settings: SweepBenchmark) -> list[dict[str, Any]]:
    """Run all cases one after the other; records, with the first case that ran well as the peer of the others."""
    one_of("scaling", settings.scaling, (None, "strong", "weak"))
    if min(settings.ranks, default=0) < 1:
        raise ConfigError(f"wrong ranks: got {settings.ranks}, need numbers of 1 or more.")
    directory = Path(settings.directory or tempfile.mkdtemp(prefix="sweep-"))
    directory.mkdir(parents=True, exist_ok=True)
    cases = list(find_cases(settings, _base_config(settings, directory)))
    if not cases:
        raise ConfigError(f"no layout fits {settings.ranks[0]} × {settings.gpu}: tools/plan_run.py --layouts says why.")
    if settings.launch is None and (most := max(case.ranks for case in cases)) > settings.ranks_per_node:
        raise ConfigError(
            f"wrong ranks: got {most}, need at most ranks_per_node = {settings.ranks_per_node} on this machine. "
            "For several nodes name a command with --launch, as examples/slurm/sweep.sbatch does."
        )
    outcomes: list[Outcome] = []
    for case in cases:
        get_logger(__name__).info("sweep: %s, %d ranks", case.name, case.ranks)
        outcomes.append(run_case(case, directory / f"case_{len(outcomes):02d}", settings))
        records = _records(outcomes)
        write_json(directory / "sweep.json", records)  # after every case: what was measured outlives a job's time limit
        write_report(outcomes, directory, scaling=settings.scaling)
    get_logger(__name__).info("table, picture, records and output of every case: %s", directory)
    return records


def _base_config(settings: SweepBenchmark, directory: Path) -> TrainConfig:
    if settings.config is not None:
        return parse_config(TrainConfig, read_yaml(settings.config), settings.config)
    config = TrainConfig()
    config.model.preset, config.training.precision, config.training.global_batch_size = "toy", "fp32", 8
    config.data.blend = str(build_sample_blend(directory / "sample", seq_length=256, vocab_size=3072, epochs=14))
    return config


def find_cases(settings: SweepBenchmark, config: TrainConfig) -> Iterator[Case]:
    """From a file, else one per number of ranks where it scales, else the plan's best layouts."""
    ranks = settings.ranks[0]
    if settings.cases is not None:
        yield from _listed_cases(settings.cases, config, ranks)
    elif settings.scaling is not None:
        for number in sorted(settings.ranks):
            training = dataclasses.replace(config.training)
            if settings.scaling == "weak":
                training.global_batch_size = config.training.global_batch_size * number // min(settings.ranks)
            scaled = dataclasses.replace(config, training=training)
            yield Case(layout_name(scaled, number), number, scaled)
    else:
        cluster = Cluster(get_gpu(settings.gpu), ranks, gpus_per_node=settings.ranks_per_node)
        data = data_of_blend(config.data.blend) or PlannedData(None, 4096)
        for plan in rank_layouts(config, cluster, data).fitting[: settings.best]:
            yield Case(layout_name(plan.config, ranks), ranks, plan.config, plan.tokens_per_s_per_gpu)


def _listed_cases(file: str, config: TrainConfig, ranks: int) -> Iterator[Case]:
    """A YAML list of {name?, ranks?, section: {key: value}…}, laid over the configuration."""
    listed = read_yaml(file)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed) or not listed:
        raise ConfigError(f"wrong cases: got {listed!r}, need a list of mappings ({file}).")
    for entry in listed:
        plain, number = to_plain(config), entry.get("ranks", ranks)
        at_least("ranks of a case", number, 1)
        for section, values in entry.items():
            if section in ("name", "ranks"):
                continue
            if not isinstance(values, dict):
                raise ConfigError(f"wrong {section} of a case: got {values!r}, need a mapping of settings ({file}).")
            plain[section] = plain.get(section, {}) | values
        case = parse_config(TrainConfig, plain, file)
        yield Case(entry.get("name", layout_name(case, number)), number, case)


def _records(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    peer = next((one for one in outcomes if one.tokens_per_s_per_rank is not None), None)
    return [
        {
            "name": f"sweep: {one.case.name}, {one.case.ranks} ranks",
            "ours": (ours := one.tokens_per_s_per_rank),
            "peer": peer.tokens_per_s_per_rank if peer else None,
            "peer_name": peer.case.name if peer else None,
            "ratio": ours / peer.tokens_per_s_per_rank if ours and peer and peer.tokens_per_s_per_rank else None,
            "unit": "tokens/s/rank",
            "planned": one.case.planned,
            "outcome": one.verdict,
            "step_time_s": one.step_time_s,
            "memory_gib": one.memory_gib,
            "runs": {"ours": one.runs},
            **surroundings(_PACKAGES),
        }
        for one in outcomes
    ]
