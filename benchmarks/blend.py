"""How fast the order of a run is drawn, packed and written: against torch.multinomial and Megatron's blending.

The peers do less: torch.multinomial gives item numbers in the exact order but stops at 2^24 items; Megatron's
`build_blending_indices` interleaves at fixed ratios and leaves the shuffle to others. Both start with fresh output
arrays, as ours does.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets import helpers_cpp
from numpy.typing import NDArray

from benchmarks.measure import Timing, interleave, surroundings
from benchmarks.recipe import DOCUMENTS, EPOCHS, PRIORITIES, SIZES, log_normal_lengths, write_sources
from benchmarks.settings import BlendBenchmark
from megatron_huatuo.blend.order_draws import Draws, fresh_draws
from megatron_huatuo.blend.order_plan import OrderPlan
from megatron_huatuo.blend.row_packing import DEFAULT_WINDOW, pack_rows
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.manifest import write_json

SHARED = Path(__file__).parents[2] / "shared" / "data"
ABSTRACTS, TOKENIZER = SHARED / "pubmed_abstracts_200.jsonl", SHARED / "baichuan2" / "tokenizer.model"
"""Real documents beside the checkout, where they are present."""
_PACKAGES = ("numpy", "torch", "megatron-core")

_log = get_logger(__name__)


def run(settings: BlendBenchmark) -> list[dict[str, Any]]:
    """All records of the blend benchmark."""
    if settings.device == "cuda":
        return _gpu_records(int(1e9) if settings.full else int(1e8))
    if settings.device != "cpu":
        raise ConfigError(f"wrong device: got {settings.device!r}, need 'cpu' or 'cuda'")
    threads = len(os.sched_getaffinity(0))
    large = 10**8 if settings.full else 10**7
    return [
        _multinomial_record(16_000_000 if settings.full else 4_000_000, threads, settings.repeats),
        *_megatron_records(large, threads, settings.repeats),
        *(_many_sources_record(total, threads, settings.repeats) for total in sorted({10**7, large})),
        _memory_record(large),
        *_block_records(10**9 if settings.full else 10**8, threads),
        *_packing_records(10**7 if settings.full else 10**6, settings.repeats),
        *_build_records(DOCUMENTS if settings.full else DOCUMENTS // 10),
    ]


def recipe_draws(total: int, seed: int = 1) -> Draws:
    """The recipe's nine sources, scaled to about `total` draws."""
    return fresh_draws(np.maximum(1, SIZES * total // 5_759_365), PRIORITIES, seed, EPOCHS)


def many_draws(total: int, sources: int, seed: int = 1) -> Draws:
    """Sources of uneven sizes with priorities 1 to 32."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.4, 1.6, sources)
    return fresh_draws((sizes / sizes.sum() * total).astype(np.int64) + 1, 2.0 ** rng.integers(0, 6, sources), seed)


def _draw(draws: Draws, threads: int) -> None:
    OrderPlan(draws, num_threads=threads).order(0, draws.total, num_threads=threads)


def _record(
    name: str,
    work: float,
    ours: Sequence[Timing],
    peer: Sequence[Timing],
    peer_name: str,
    threads: tuple[int, int],
) -> dict[str, Any]:
    """Million draws a second, ours on threads[0] cores and the peer on threads[1]; no ratio where a core was away."""
    rates = [work / statistics.median(run.wall_s for run in runs) / 1e6 for runs in (ours, peer)]
    shares = [
        statistics.median(run.cpu_s / run.wall_s for run in runs) / count
        for runs, count in zip((ours, peer), threads, strict=True)
    ]
    cpu = [statistics.median(run.cpu_s for run in runs) for runs in (ours, peer)]
    return {
        "name": name,
        "ours": rates[0],
        "peer": rates[1],
        "peer_name": peer_name,
        "ratio": rates[0] / rates[1] if min(shares) >= 0.85 else None,
        "cpu_ratio": cpu[1] / cpu[0],
        "unit": "M draws/s",
        "runs": {"ours": [vars(run) for run in ours], "peer": [vars(run) for run in peer], "threads": threads},
        **surroundings(_PACKAGES),
    }


def _figure(name: str, value: float, unit: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "ours": value,
        "peer": None,
        "ratio": None,
        "unit": unit,
        "runs": {},
        **more,
        **surroundings(_PACKAGES),
    }


def _multinomial_record(total: int, threads: int, repeats: int) -> dict[str, Any]:
    draws = recipe_draws(total)
    weights = torch.from_numpy(np.repeat(draws.priorities.astype(np.float32), draws.num_draws))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        timings = interleave(
            {
                "ours": functools.partial(_draw, draws, threads),
                "peer": lambda: torch.multinomial(weights, draws.total, replacement=False),
            },
            max(1, min(repeats, 3)),
        )
    finally:
        torch.set_num_threads(before)
    name = f"blend: order of {draws.total:,} draws, 9 sources, {threads} threads"
    return _record(name, draws.total, timings["ours"], timings["peer"], "torch.multinomial", (threads, 1))


def _blending_indices(draws: Draws) -> None:
    """As megatron-core's BlendedDataset does it: weights are the sources' shares of the draws."""
    dataset_index = np.zeros(draws.total, dtype=np.int16)
    sample_index = np.zeros(draws.total, dtype=np.int64)
    weights = draws.num_draws / draws.total
    helpers_cpp.build_blending_indices(dataset_index, sample_index, weights, draws.num_sources, draws.total, False)


def _shuffle_index(total: int) -> None:
    """As megatron-core's GPTDataset does it."""
    index = np.arange(0, total, step=1, dtype=np.uint32)
    np.random.RandomState(1).shuffle(index)


def _megatron_records(total: int, threads: int, repeats: int) -> list[dict[str, Any]]:
    draws = recipe_draws(total)
    timings = interleave(
        {
            "ours": functools.partial(_draw, draws, threads),
            "single": functools.partial(_draw, draws, 1),
            "blending": functools.partial(_blending_indices, draws),
        },
        repeats,
    )
    shuffle = interleave({"shuffle": functools.partial(_shuffle_index, draws.total)}, 1 if total > 2e7 else 3)[
        "shuffle"
    ]
    extra = Timing(*(statistics.median(getattr(run, field) for run in shuffle) for field in ("wall_s", "cpu_s")))
    both = [Timing(run.wall_s + extra.wall_s, run.cpu_s + extra.cpu_s) for run in timings["blending"]]
    name = f"blend: order of {draws.total:,} draws, 9 sources"
    peer = "megatron-core build_blending_indices"
    return [
        _record(f"{name}, {threads} threads", draws.total, timings["ours"], timings["blending"], peer, (threads, 1)),
        _record(f"{name}, 1 thread", draws.total, timings["single"], timings["blending"], peer, (1, 1)),
        _record(
            f"{name} with the shuffle, {threads} threads",
            draws.total,
            timings["ours"],
            both,
            f"{peer} + RandomState shuffle index",
            (threads, 1),
        ),
    ]


def _many_sources_record(total: int, threads: int, repeats: int) -> dict[str, Any]:
    few, many = recipe_draws(total), many_draws(total, 1000)
    timings = interleave(
        {"many": functools.partial(_draw, many, threads), "few": functools.partial(_draw, few, threads)}, repeats
    )
    name = f"blend: order of {many.total:,} draws, 1,000 sources against 9, {threads} threads"
    return _record(name, total, timings["many"], timings["few"], "this kernel with 9 sources", (threads, threads))


_MEMORY_CHILD = """
import json, re, sys
import numpy as np
from megatron_huatuo.blend.order_draws import fresh_draws
from megatron_huatuo.blend.order_plan import OrderPlan

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

sizes, priorities, epochs = json.loads(sys.argv[1])
draws = fresh_draws(sizes, priorities, 1, epochs)
OrderPlan(fresh_draws([5000, 5000], [2.0, 1.0], 1)).order(0, 1000)
source, document = np.ones(draws.total, np.uint8), np.ones(draws.total, np.uint32)
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = status("VmRSS")
OrderPlan(draws).order_into(0, source, document)
print((status("VmHWM") - before) / 1024)
"""


def _memory_record(total: int) -> dict[str, Any]:
    """Growth of the peak resident set while the order is planned and drawn, in a process of its own."""
    draws = recipe_draws(total)
    problem = json.dumps([draws.num_documents.tolist(), PRIORITIES.tolist(), EPOCHS.tolist()])
    child = [sys.executable, "-c", _MEMORY_CHILD, problem]
    output = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    return _figure(f"blend: memory beside the output, {total:,} draws", float(output.split()[-1]), "MiB")


def _block_records(total: int, threads: int) -> list[dict[str, Any]]:
    """Blocks of 4,096 draws at random places, one thread, of 64 sources."""
    draws = many_draws(total, 64)
    began = time.perf_counter()
    plan = OrderPlan(draws, num_threads=threads)
    plan_s = time.perf_counter() - began
    times = []
    for start in np.random.default_rng(0).integers(0, total - 4096, 300):
        began = time.perf_counter()
        plan.order(int(start), int(start) + 4096, num_threads=1)
        times.append(1e3 * (time.perf_counter() - began))
    name = f"blend: {total:,} draws, 64 sources"
    return [
        _figure(f"{name}: plan, {threads} threads", plan_s, "s", plan_mb=plan.nbytes / 1e6),
        _figure(f"{name}: memory of the plan", plan.nbytes / 1e6, "MB"),
        _figure(f"{name}: a block of 4,096 anywhere", statistics.median(times), "ms", slowest_ms=max(times)),
    ]


def _packing_records(documents: int, repeats: int) -> list[dict[str, Any]]:
    """Rate and padding in rows of 4,096: log-normal lengths of mean 300 (sigma 1 in the logarithm), and real ones."""
    rng = np.random.default_rng(0)
    kinds = {"log-normal lengths": log_normal_lengths(rng, documents, 300)}
    if ABSTRACTS.is_file() and TOKENIZER.is_file():
        kinds["lengths of PubMed abstracts"] = rng.choice(_abstract_lengths(), documents)
    else:
        _log.warning("no figure for the sample's own lengths: %s or %s is absent", ABSTRACTS, TOKENIZER)
    records = []
    for kind, lengths in kinds.items():
        runs = interleave({"ours": functools.partial(pack_rows, lengths, 4096, DEFAULT_WINDOW)}, repeats)["ours"]
        _, row_start = pack_rows(lengths, 4096, DEFAULT_WINDOW)
        padding = 1 - float(np.minimum(lengths, 4096).sum()) / (4096 * (len(row_start) - 1))
        rate = documents / statistics.median(run.wall_s for run in runs) / 1e6
        name = f"blend: pack_rows, {documents:,} {kind}, window {DEFAULT_WINDOW:,}"
        records.append(_figure(name, rate, "M documents/s", runs={"ours": [vars(run) for run in runs]}))
        records.append(_figure(f"{name}: padding", 100 * padding, "%", mean_length=float(lengths.mean())))
    return records


def _abstract_lengths() -> NDArray[np.int32]:
    """Tokens of each abstract under Baichuan2's tokenizer, with its eos."""
    texts = [json.loads(line)["text"] for line in ABSTRACTS.read_text(encoding="utf-8").splitlines()]
    return np.array([len(ids) + 1 for ids in load_tokenizer(TOKENIZER).encode_batch(texts)], dtype=np.int32)


_BUILD_CHILD = """
import sys, time
from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import read_blend_config
config = read_blend_config(sys.argv[1])
began = time.perf_counter()
build_blend(config, sys.argv[2])
# Not ru_maxrss: across fork and exec that keeps the peak of the parent.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - began, int(peak.split()[1]) / 1024)
"""


def _build_records(documents: int) -> list[dict[str, Any]]:
    """The whole blend directory from nine indexes of short documents, in a process of its own."""
    tokenizer = {"sha256": "benchmark", "vocab_size": 1000, "eos_id": 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_sources(folder, documents, _short_lengths, 1000, tokenizer)
        config = folder / "blend.yaml"
        write_json(config, {"seq_length": 128, "seed": 1, "sources": sources})
        child = [sys.executable, "-c", _BUILD_CHILD, str(config), str(folder / "blend")]
        output = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    seconds, mebibytes = map(float, output.split()[-2:])
    name = f"blend: whole directory of {documents:,} documents in nine sources"
    return [_figure(name, seconds, "s"), _figure(f"{name}: peak memory of the process", mebibytes, "MiB")]


def _short_lengths(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    return rng.integers(2, 10, count)


def _gpu_records(total: int) -> list[dict[str, Any]]:
    """Kernel alone and end to end (plan, kernel, copy to the host), the fastest of three."""
    draws = recipe_draws(total)
    source, document = np.zeros(draws.total, np.uint8), np.zeros(draws.total, np.uint32)
    kernel, end_to_end = [], []
    for _ in range(3):
        began = time.perf_counter()
        done, reason, seconds = OrderPlan(draws)._plan.order_cuda(0, draws.total, source, document)
        end_to_end.append(time.perf_counter() - began)
        if not done:
            raise ConfigError(f"no GPU order: {reason}")
        kernel.append(seconds)
    name = f"blend: order of {draws.total:,} draws on {torch.cuda.get_device_name()}"
    return [
        _figure(f"{name}: kernel", draws.total / min(kernel) / 1e6, "M draws/s"),
        _figure(f"{name}: end to end", draws.total / min(end_to_end) / 1e6, "M draws/s"),
    ]
