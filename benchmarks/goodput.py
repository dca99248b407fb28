"""How much of a long run's time is training, when failures come as often as Llama 3's did: real kills of a toy run.

Llama 3 405B (Llama Team 2024, section 3.3.4 and table 5): 466 interruptions in 54 days on 16,384 H100, 419 of them
unexpected. They are replayed at that rate for each GPU on a compressed clock: where nothing happens the clock leaps over
whole save intervals; then the toy run trains to the same place between two saves, is really killed, hung or stopped, and
really restarts and resumes. What it loses is counted in steps of the run that is replayed, how long it takes to train
again in seconds as measured; what two ranks on one machine cannot show is added and said: the default time-out of a
hang, and what a start takes longer with many ranks.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import surroundings
from benchmarks.sample import build_sample_blend
from benchmarks.settings import GoodputBenchmark
from benchmarks.toy_run import ToyRun

_GPU_DAYS = 16_384 * 54.0
_TARGET = 95.0
# Fewer than the rows of one pass over the bundled sample.
_ROWS_OF_THE_SAMPLE = 80
# Steps between saves of the toy run, and its time-out in the place of runtime.distributed_timeout_minutes' default.
_TOY_INTERVAL, _TOY_TIMEOUT_S, _TIMEOUT_S = 4, 6.0, 600.0


@dataclass(frozen=True)
class Cause:
    """Interruptions of one kind in those 54 days, and what stands for them: a rank is killed, hangs, or all are stopped."""

    name: str
    count: int
    kind: str


CAUSES = (
    Cause("GPU, its memory or cooling", 148 + 72 + 19 + 17 + 6, "kill"),
    Cause("host: processor, memory, disk, power, adapter", 2 + 2 + 3 + 3 + 2 + 2 + 7, "kill"),
    Cause("software", 54 + 2, "kill"),
    Cause("silent data corruption", 6, "kill"),
    Cause("network: switch, cable, time-outs", 35 + 7, "hang"),
    Cause("host maintenance, unplanned", 32, "stop"),
    Cause("planned interruption", 47, "stop"),
)


@dataclass(frozen=True)
class Failure:
    """after_s: training time since the failure before, or the start."""

    after_s: float
    cause: Cause


@dataclass(frozen=True)
class Outcome:
    """One replayed failure, in seconds of the replayed run: work done again, and time without training."""

    failure: Failure
    lost_s: float
    waiting_s: float


def draw_failures(gpus: int, days: float, seed: int) -> list[Failure]:
    """Failures of a run, independent of each other, at the rate of Llama 3's 16,384 GPUs."""
    generator = random.Random(seed)
    mean_s = 86400 * _GPU_DAYS / sum(cause.count for cause in CAUSES) / gpus
    failures: list[Failure] = []
    passed = generator.expovariate(1 / mean_s)
    before = 0.0
    while passed < days * 86400:
        cause = generator.choices(CAUSES, [each.count for each in CAUSES])[0]
        failures.append(Failure(passed - before, cause))
        before, passed = passed, passed + generator.expovariate(1 / mean_s)
    return failures


def toy_steps_after_save(failure: Failure, interval_s: float) -> int:
    """Where between two saves a failure comes, in steps of the toy run: 0 … _TOY_INTERVAL - 1."""
    return int(failure.after_s % interval_s / interval_s * _TOY_INTERVAL)


def replay(toy: ToyRun, failures: Sequence[Failure], settings: GoodputBenchmark) -> list[Outcome]:
    """Do to the toy run what happens to the replayed one; it is running when called."""
    interval_s = settings.save_interval * settings.step_s
    generator = random.Random(settings.seed)
    outcomes = []
    for failure in failures:
        first_save = (toy.iteration() // _TOY_INTERVAL + 1) * _TOY_INTERVAL
        target = first_save + toy_steps_after_save(failure, interval_s)
        # The line after a save is written before the save is: one more step shows that it is complete.
        target = max(target, first_save + 1)
        toy.wait_until(lambda target=target: toy.iteration() >= target, f"step {target}")  # type: ignore[misc]
        lost_steps, waiting_s = _strike(toy, failure.cause.kind, generator.randrange(2))
        lost_s = lost_steps * interval_s / _TOY_INTERVAL
        extra_s = _TIMEOUT_S - _TOY_TIMEOUT_S if failure.cause.kind == "hang" else 0.0
        outcomes.append(Outcome(failure, lost_s, waiting_s + extra_s + settings.start_s))
    return outcomes


def _strike(toy: ToyRun, kind: str, rank: int) -> tuple[int, float]:
    """(steps that are trained again, seconds until a new step is done) of one failure."""
    starts, began = len(toy.starts()), time.monotonic()
    before = toy.lines()
    if kind == "stop":
        toy.stop()
        before = toy.lines()
        toy.launch()
    elif kind == "hang":
        toy.hang(rank)
    else:
        toy.kill(rank)
    toy.wait_until(lambda: len(toy.starts()) > starts, "its next start")
    resumed = toy.starts()[-1]
    toy.wait_until(
        lambda: toy.lines().get(resumed + 1) not in (None, before.get(resumed + 1)), f"step {resumed + 1} again"
    )
    return max(before) - resumed, time.monotonic() - began


def effective_share(outcomes: Sequence[Outcome], days: float) -> float:
    """Training time that counts over all time."""
    lost = sum(outcome.lost_s + outcome.waiting_s for outcome in outcomes)
    return 1 - lost / (days * 86400)


def lost_by_cause(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """{cause: failures, lost_s: work done again, waiting_s: detection, restart and loading}."""
    found: dict[str, dict[str, float]] = {}
    for outcome in outcomes:
        entry = found.setdefault(outcome.failure.cause.name, {"failures": 0, "lost_s": 0.0, "waiting_s": 0.0})
        entry["failures"] += 1
        entry["lost_s"] += outcome.lost_s
        entry["waiting_s"] += outcome.waiting_s
    return found


def run(settings: GoodputBenchmark) -> list[dict[str, Any]]:
    """Replay a whole run; the toy run goes on as long as failures do."""
    failures = draw_failures(settings.gpus, settings.days, settings.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needed = 2 * (len(failures) + 1) * 2 * _TOY_INTERVAL
        blend = build_sample_blend(folder, seq_length=256, vocab_size=3072, epochs=1 + needed // _ROWS_OF_THE_SAMPLE)
        with toy_run(folder, blend) as toy:
            outcomes = replay(toy, failures, settings)
    return [_record(settings, outcomes)]


def toy_run(folder: Path, blend: Path) -> ToyRun:
    """The run that stands for a large one."""
    return ToyRun(folder, blend, save_interval=_TOY_INTERVAL, timeout_s=_TOY_TIMEOUT_S)


def _record(settings: GoodputBenchmark, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    share = 100 * effective_share(outcomes, settings.days)
    by_cause = lost_by_cause(outcomes)
    for cause, entry in sorted(by_cause.items(), key=lambda item: -item[1]["lost_s"] - item[1]["waiting_s"]):
        again, waiting = entry["lost_s"] / 60, entry["waiting_s"] / 60
        print(
            f"  {cause}: {entry['failures']:.0f} failures, {again:.0f} minutes trained again, {waiting:.0f} without training"
        )
    return {
        "name": f"goodput: {settings.gpus} GPUs, {settings.days:g} days, {len(outcomes)} failures replayed",
        "ours": share,
        "peer": _TARGET,
        "peer_name": "target",
        "ratio": share / _TARGET,
        "unit": "% effective",
        "lost_by_cause": by_cause,
        "runs": {"lost_s": [one.lost_s for one in outcomes], "waiting_s": [one.waiting_s for one in outcomes]},
        **surroundings(("torch", "megatron-core")),
    }
