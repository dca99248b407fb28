"""What a report of a run shows, gathered from the files of all its stages; a stage that is not there is left out.

Nothing is computed that a stage has written: counts come from manifests, curves from log.jsonl, scores from scores.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.learning_rate import BlendRates
from megatron_huatuo.blend.schedule_counts import Schedule, Segment
from megatron_huatuo.errors import ConfigError, HuatuoError
from megatron_huatuo.storage.blend_files import ORDER_SOURCE, BlendReader
from megatron_huatuo.storage.manifest import MANIFEST_NAME, read_json
from megatron_huatuo.storage.run_files import (
    CHECKPOINTS,
    STATUS,
    complete_checkpoints,
    is_run,
    iteration_of,
    read_log,
    read_run_config,
    read_starts,
    read_training_state,
)
from megatron_huatuo.train.observers.received import rates_of_run
from megatron_huatuo.train.train_config import TrainConfig

MOST_POINTS = 800


@dataclass
class Curve:
    """One line of a chart, thinned to at most MOST_POINTS means."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass
class RunReport:
    """Everything that the page shows."""

    run_dir: Path
    status: dict[str, Any]
    config: dict[str, Any]
    flow: list[tuple[str, int, str]] = field(default_factory=list)
    """(stage, count, what is counted), from raw documents to trained tokens."""
    sources: list[str] = field(default_factory=list)
    planned: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Progress [B] and share of each source among the drawn documents [B, S]."""
    trained_share: list[Curve] = field(default_factory=list)
    """Share of each source among the trained tokens of a step."""
    rates: BlendRates | None = None
    received: dict[str, Any] = field(default_factory=dict)
    losses: list[Curve] = field(default_factory=list)
    losses_by_source: list[Curve] = field(default_factory=list)
    validation: list[Curve] = field(default_factory=list)
    grad_norm: list[Curve] = field(default_factory=list)
    throughput: list[Curve] = field(default_factory=list)
    mfu: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Mean seconds of a step by part."""
    events: list[tuple[str, str]] = field(default_factory=list)
    """(what, when and how): starts, saves, pauses, skipped steps."""
    parity: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    exams: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    judgements: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """What could not be read, and why."""


def gather_report(run_dir: Path, hf: Path | None, evaluations: Sequence[Path]) -> RunReport:
    """Read a run, finished or not; hf: its exported model, evaluations: result directories.

    Raises: ConfigError when there is no run, or a result directory holds no results.
    """
    if not is_run(run_dir):
        raise ConfigError(f"no training run: {run_dir} holds no log, status or checkpoints. Check the path.")
    status = read_json(run_dir / STATUS) if (run_dir / STATUS).is_file() else {}
    report = RunReport(run_dir, status, read_run_config(run_dir))
    _read_curves(report, list(read_log(run_dir)))
    _read_starts_and_saves(report)
    try:
        _read_blend(report)
    except (HuatuoError, OSError, TypeError, KeyError) as error:
        report.missing.append(f"mixture and flow: {error}")
    exported = hf or _exported(report.config)
    if exported is not None and (exported / MANIFEST_NAME).is_file():
        content = read_json(exported / MANIFEST_NAME)
        report.parity, report.model = content.get("parity") or {}, {"directory": str(exported)}
    for directory in evaluations:
        _read_evaluation(report, directory)
    return report


def _exported(config: Mapping[str, Any]) -> Path | None:
    named = (config.get("checkpoint") or {}).get("export_hf")
    return Path(named) if named else None


def _read_curves(report: RunReport, log: list[dict[str, Any]]) -> None:
    log = [entry for entry in log if isinstance(entry.get("iteration"), int)]
    steps = np.array([entry["iteration"] for entry in log], dtype=np.float64)

    def curve(name: str, values: Iterable[Any]) -> Curve:
        y = np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
        return Curve(name, *thinned(steps, y))

    def column(key: str) -> list[Any]:
        return [entry.get(key) for entry in log]

    if not log:
        return
    report.losses = [curve("loss", column("lm_loss"))]
    report.grad_norm = [curve("gradient norm", column("grad_norm"))]
    report.throughput = [curve("tokens/s per rank", column("tokens_per_s_per_gpu"))]
    names = list(dict.fromkeys(name for entry in log for name in entry.get("loss_by_source") or {}))
    for name in names:
        report.losses_by_source.append(curve(name, [(entry.get("loss_by_source") or {}).get(name) for entry in log]))
        shares = [_share(entry.get("trained_tokens_by_source") or {}, name) for entry in log]
        report.trained_share.append(curve(name, shares))
    held_out = list(dict.fromkeys(name for entry in log for name in entry.get("validation_loss") or {}))
    for name in held_out:
        measured = [entry for entry in log if name in (entry.get("validation_loss") or {})]
        x = np.array([entry["iteration"] for entry in measured], dtype=np.float64)
        y = np.array([entry["validation_loss"][name] for entry in measured], dtype=np.float64)
        report.validation.append(Curve(name, x, y))
    utilisations = [entry["mfu"] for entry in log if entry.get("mfu") is not None]
    report.mfu = float(np.mean(utilisations)) if utilisations else None
    parts: Counter[str] = Counter()
    for entry in log:
        parts.update(entry.get("seconds") or {})
    report.seconds = {part: total / len(log) for part, total in parts.items()}
    skipped = sum(entry.get("skipped_steps") or 0 for entry in log)
    if skipped:
        report.events.append(("skipped steps", f"{skipped}: loss or gradient was not finite"))
    pauses: Counter[str] = Counter()
    for entry in log:
        pauses.update(entry.get("pauses_s") or {})
    report.events += [(f"paused for {reason}", f"{seconds:.1f} s in all") for reason, seconds in pauses.items()]


def _share(counts: Mapping[str, float], name: str) -> float | None:
    total = sum(counts.values())
    return counts.get(name, 0) / total if total else None


def thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of at most MOST_POINTS groups of neighbours; missing values are left out of a group's mean."""
    if len(x) <= MOST_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), MOST_POINTS)
    known = ~np.isnan(y)
    means = [float(y[group][known[group]].mean()) if known[group].any() else np.nan for group in groups]
    return np.array([x[group].mean() for group in groups]), np.array(means)


def _read_starts_and_saves(report: RunReport) -> None:
    starts = list(read_starts(report.run_dir))
    for number, start in enumerate(starts):
        what = "started" if number == 0 else f"started again at step {start.get('iteration')}"
        hosts, isolation = start.get("hosts") or {}, start.get("isolation") or {}
        kept_apart = f"; documents kept apart by {isolation['backend']}" if isolation else ""
        report.events.append(
            (what, f"{start.get('time')}, {sum(hosts.values())} ranks on {len(hosts)} hosts{kept_apart}")
        )
    saved = complete_checkpoints(report.run_dir / CHECKPOINTS)
    if saved:
        report.events.append(("checkpoints kept", ", ".join(str(iteration_of(path)) for path in reversed(saved))))
        state = read_training_state(saved[0])
        report.received = state.get("learning_rate_by_source") or {}
        report.fingerprints = state.get("fingerprints") or {}


def _read_blend(report: RunReport) -> None:
    blend = BlendReader(report.config["data"]["blend"])
    report.sources = blend.source_names
    segments = [Segment.from_plain(content) for content in blend.manifest["segments"]]
    drawn = Schedule.of_rows(blend.source_names, blend.directory / ORDER_SOURCE, segments)
    report.planned = drawn.progress, drawn.shares
    report.rates = rates_of_run(_train_config(report.config))
    report.flow = _flow(blend, report)


def _train_config(content: Mapping[str, Any]) -> TrainConfig:
    """The parts of a run's settings that decide its learning rate."""
    config = TrainConfig()
    for section in ("data", "optimizer", "schedule", "training"):
        for key, value in (content.get(section) or {}).items():
            if hasattr(getattr(config, section), key) and key != "validation":
                setattr(getattr(config, section), key, value)
    return config


_STAGES = (
    ("raw documents", "read by curation"),
    ("passages", "kept by curation"),
    ("conversations", "unified pairs and fine-tuning data"),
    ("indexed documents", "after tokenising"),
    ("indexed tokens", "one epoch of every source"),
)


def _flow(blend: BlendReader, report: RunReport) -> list[tuple[str, int, str]]:
    """From raw documents to trained tokens, as far as the files of the stages before are still there."""
    counts: Counter[str] = Counter()
    seen: set[Path] = set()
    for prefix in blend.path_prefixes:
        manifest = read_json(Path(f"{prefix}.json")) if Path(f"{prefix}.json").is_file() else {}
        counts["indexed documents"] += manifest.get("documents", 0)
        counts["indexed tokens"] += manifest.get("tokens", 0)
        for origin in _input_paths(manifest):
            _count_stage(origin, counts, seen)
    flow = [(stage, counts[stage], what) for stage, what in _STAGES if counts[stage]]
    flow.append(("drawn documents", int(blend.manifest["documents"]), "with epochs, in drawing order"))
    flow.append(("rows", len(blend), f"of {blend.seq_length} tokens"))
    trained = sum(rate["trained_tokens"] for rate in report.received.values())
    if trained:
        flow.append(("trained tokens", trained, "until the newest checkpoint"))
    return flow


def _input_paths(manifest: Mapping[str, Any]) -> list[Path]:
    """Files that a stage has read; its manifest names them as keys, or in a list."""
    inputs = manifest.get("inputs") or []
    return [Path(origin["path"] if isinstance(origin, dict) else origin) for origin in inputs]


def _count_stage(path: Path, counts: Counter[str], seen: set[Path]) -> None:
    """Count the records of a file, and follow it to the stage that wrote it, and to the stage before that one."""
    if path in seen or not path.is_file():
        return
    seen.add(path)
    manifest_file, report_file = path.parent / MANIFEST_NAME, path.parent / "report.json"
    kind = read_json(manifest_file).get("kind") if manifest_file.is_file() else None
    if kind == "corpus":
        content = read_json(report_file) if report_file.is_file() else {}
        counts["raw documents"] += content.get("documents_in", 0)
        counts["passages"] += content.get("documents_out", 0)
        return
    counts["conversations"] += _lines(path)
    if kind == "unified":
        for origin in _input_paths(read_json(manifest_file)):
            _count_stage(origin, counts, seen)


def _lines(path: Path) -> int:
    with open(path, "rb") as handle:
        return sum(1 for _ in handle)


def _read_evaluation(report: RunReport, directory: Path) -> None:
    """An exam's or a judge's directory. Raises: ConfigError when it is neither."""
    scores = directory / "scores.json"
    if not scores.is_file():
        raise ConfigError(f"no results: {directory} has no scores.json. Name directories that evaluate.py wrote.")
    content = json.loads(scores.read_text("utf-8"))
    (report.exams if "accuracy" in content else report.judgements).append((str(directory), content))
