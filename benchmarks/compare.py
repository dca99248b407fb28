"""Two records, or two commands run in turn: what changed beyond noise.

A change counts when the medians differ by more than twice their common standard error, and by three per cent at least. The
ratio against the named peer is compared where both records have one: it was taken in one run, so a busier machine moves it
less than the rate itself.
"""

from __future__ import annotations

import math
import shlex
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import interleave
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.manifest import read_json

_LEAST = 0.03
_ERRORS = 2.0
_MEASURED = ("wall_s", "start_s", "stall_s", "step_time_s")


@dataclass(frozen=True)
class Change:
    """One figure in both records. change: relative, 0.1 for ten per cent more; noise: what must be exceeded.

    larger_is_better: of the figure, and so of its ratio to the peer's.
    """

    name: str
    before: float
    after: float
    what: str
    change: float
    noise: float
    larger_is_better: bool = True

    @property
    def verdict(self) -> str:
        """better, worse, or within noise."""
        if abs(self.change) <= self.noise:
            return "within noise"
        return "better" if (self.change > 0) == self.larger_is_better else "worse"


def compare_records(before: str | Path, after: str | Path) -> list[Change]:
    """Figures that both files have, in the order of the first.

    Raises: ConfigError when a file holds no records, or the two have no figure in common.
    """
    first, second = _read(before), _read(after)
    machines = {record.get("machine") for record in (*first.values(), *second.values())}
    if len(machines) > 1:
        get_logger(__name__).warning("the records are from different machines: %s", "; ".join(map(str, machines)))
    names = [name for name in first if name in second]
    if not names:
        raise ConfigError(f"records have no figure in common: {before} and {after}. Compare records of one benchmark.")
    for name in first.keys() ^ second.keys():
        get_logger(__name__).warning("only in one of the records: %s", name)
    return [_change(name, first[name], second[name]) for name in names if _has_figures(name, first, second)]


def compare_commands(before: str, after: str, repeats: int) -> list[Change]:
    """Wall and processor time of two commands, run in turn. Raises: ConfigError when one fails."""

    def run(command: str) -> None:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"command failed with exit code {done.returncode}: {command}\n{done.stderr[-2000:]}")

    timings = interleave({"before": lambda: run(before), "after": lambda: run(after)}, repeats)
    changes = []
    for field, what in (("wall_s", "s by the clock"), ("cpu_s", "s of the processors")):
        values = {name: [getattr(timing, field) for timing in runs] for name, runs in timings.items()}
        changes.append(_of_runs(what, values["before"], values["after"], what, larger_is_better=False))
    return changes


def _read(path: str | Path) -> dict[str, Mapping[str, Any]]:
    content = read_json(Path(path))
    if not isinstance(content, list) or not all(isinstance(record, dict) and "name" in record for record in content):
        raise ConfigError(f"no benchmark records: {path} is not a list of them. Write one with --json FILE.")
    return {record["name"]: record for record in content}


def _has_figures(name: str, *records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Not where a case of a sweep failed, which has none, nor where the figure is 0, of which nothing is a multiple."""
    found = all(record[name]["ours"] for record in records)
    if not found:
        get_logger(__name__).warning("no figure above 0 in one of the records: %s", name)
    return found


def _change(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Change:
    unit = str(first.get("unit", ""))
    larger = "/s" in unit or unit.startswith(("×", "% effective"))
    if first.get("ratio") is not None and second.get("ratio") is not None:
        noise = math.hypot(_ratio_error(first), _ratio_error(second))
        change = second["ratio"] / first["ratio"] - 1
        return Change(name, first["ratio"], second["ratio"], "× the peer", change, max(_LEAST, _ERRORS * noise), larger)
    noise = math.hypot(_error(_times(first, "ours")), _error(_times(second, "ours")))
    change = second["ours"] / first["ours"] - 1
    return Change(name, first["ours"], second["ours"], unit, change, max(_LEAST, _ERRORS * noise), larger)


def _of_runs(
    name: str, first: Sequence[float], second: Sequence[float], what: str, *, larger_is_better: bool
) -> Change:
    before, after = statistics.median(first), statistics.median(second)
    noise = max(_LEAST, _ERRORS * math.hypot(_error(first), _error(second)))
    return Change(name, before, after, what, after / before - 1, noise, larger_is_better)


def _times(record: Mapping[str, Any], who: str) -> list[float]:
    """What was measured in each run: the figure itself, or the one of its times that was the figure; none where runs are
    only counted."""
    runs = record["runs"].get(who, []) if isinstance(record.get("runs"), dict) else []
    times = [[run[key] for key in _MEASURED if key in run] if isinstance(run, dict) else [run] for run in runs]
    return [float(found[0]) for found in times if found]


def _ratio_error(record: Mapping[str, Any]) -> float:
    return math.hypot(_error(_times(record, "ours")), _error(_times(record, "peer")))


def _error(values: Sequence[float]) -> float:
    """Relative standard error of the median, by that of the mean times 1.253; five per cent where there is one value."""
    if len(values) < 2:
        return 0.05
    return 1.253 * statistics.stdev(values) / math.sqrt(len(values)) / statistics.median(values)


def format_changes(changes: Sequence[Change]) -> str:
    """A table for a person."""
    lines = [f"{'figure':<72} {'before':>12} {'after':>12} {'change':>8} {'noise':>7}  verdict"]
    for item in changes:
        lines.append(
            f"{item.name:<72} {item.before:>12,.4g} {item.after:>12,.4g} {item.change:>+8.1%} {item.noise:>7.1%}  "
            f"{item.verdict} ({item.what})"
        )
    return "\n".join(lines)
