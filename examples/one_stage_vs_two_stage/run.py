#!/usr/bin/env python3
"""Does one stage beat two, on data of one's own? Trains every arm from the same base on the same documents, several seeds.

    python examples/one_stage_vs_two_stage/run.py --size toy

Prints what it finds, whatever that is, and writes comparison.md, comparison.png and comparison.json. A killed run goes on
where it was: each arm and seed is a job with a result of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_huatuo.config import argument_parser
from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.errors import ConfigError, HuatuoError, exit_on_error
from megatron_huatuo.log import progress, silence_known_warnings
from megatron_huatuo.storage.manifest import read_json, write_json

sys.path.insert(0, str(Path(__file__).resolve().parent))
from comparison import CAVEAT, compare, format_table, plot
from experiment import ARMS, SIZES, prepare_data


def _run_jobs(jobs: list[tuple[str, str, tuple[object, ...]]], parallel: int) -> None:
    """(name, function of training.py, arguments), each in a process of its own, `parallel` at a time.

    Raises: HuatuoError naming the job that failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training"])

    def run(job: tuple[str, str, tuple[object, ...]]) -> None:
        name, function, arguments = job
        process = context.Process(target=_call, args=(function, arguments))
        process.start()
        process.join()
        if process.exitcode:
            raise HuatuoError(f"job failed: {name} ended with exit code {process.exitcode}. Its log lies below runs/.")

    with ThreadPoolExecutor(parallel) as threads:
        for _ in progress(threads.map(run, jobs), total=len(jobs), description="training", unit="job"):
            pass


def _call(function: str, arguments: tuple[object, ...]) -> None:
    import training

    getattr(training, function)(*arguments)


@exit_on_error
def main() -> None:
    """Data, base, all arms under all seeds, comparison."""
    silence_known_warnings()
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--size", choices=list(SIZES), default="toy", help="toy (a base is trained first), or smollm2")
    parser.add_argument("--base", type=str | None, default=None, metavar="HF_DIR", help="base model of --size smollm2")
    parser.add_argument("--seeds", type=int | None, default=None, metavar="N", help="default: 5, with smollm2 3")
    parser.add_argument("--arms", type=str, nargs="+", default=[arm.name for arm in ARMS], help="some of the arms")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="runs at the same time")
    parser.add_argument("--output", type=str | None, default=None, metavar="DIR", help="default: runs/one_stage/SIZE")
    options = parser.parse_args()
    size, began = SIZES[options.size], time.monotonic()
    if (size.preset is None) != (options.base is not None):
        raise ConfigError(
            f"wrong --base: size {options.size} needs {'a base model' if size.preset is None else 'none'}."
        )
    unknown = set(options.arms) - {arm.name for arm in ARMS}
    if unknown:
        raise ConfigError(
            f"unknown arm: got {sorted(unknown)[0]!r}, need some of {', '.join(arm.name for arm in ARMS)}."
        )
    work = Path(options.output or f"runs/one_stage/{options.size}").resolve()
    hf = None if options.base is None else Path(options.base).resolve()
    prepare_data(work, size, hf)
    base = work / "base"
    if hf is not None and not base.is_dir():
        import_hf(hf, base)
    elif hf is None:
        _run_jobs([("base", "train_base", (work, options.size))], 1)
    jobs: list[tuple[str, str, tuple[object, ...]]] = [("base", "measure_base", (work, options.size, base, hf))]
    for seed in range(1, (options.seeds or size.seeds) + 1):
        for arm in ARMS:
            if arm.name in options.arms:
                jobs.append((f"{arm.name}, seed {seed}", "run_arm", (work, options.size, arm, seed, base, hf)))
    _run_jobs(jobs, options.jobs)
    _report(work, options.arms, time.monotonic() - began)


def _report(work: Path, arms: list[str], seconds: float) -> None:
    from training import read_results

    results = read_results(work, arms)
    compared = compare(results)
    table = format_table(compared, read_json(work / "results" / "base.json"))
    tokens = sorted({result["trained_tokens"] for result in results})
    text = (
        f"{table}\n\n{len(results)} runs of {tokens[0]:,} to {tokens[-1]:,} trained tokens, exam chance "
        f"{results[0]['exam_chance']:.3f}. In brackets: difference from the two stages, paired by seed, with its 95 % interval; "
        f"bold where the interval leaves zero out. {CAVEAT}\n"
    )
    (work / "comparison.md").write_text(text, "utf-8")
    write_json(work / "comparison.json", {"compared": compared, "results": results})
    plot(results, compared, work / "comparison.png")
    print(f"\n{text}\n{seconds / 60:.1f} minutes; {work}/comparison.md, .png, .json")


if __name__ == "__main__":
    sys.exit(main())
