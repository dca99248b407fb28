"""The steps of curation that see all passages at once: exact duplicates, near-duplicates, merge, at the seed's scale.

The shards are generated, in the form in which tasks leave them: signatures of random numbers, of which a share are copies
of earlier ones with some of their numbers changed, and another share repeats an earlier text. The search and the merge
run in processes of their own, once with the search inside the merge and once as one task for each band; both must give
the same files. The cost of a passage is compared with that in the smallest corpus: linear growth keeps it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import surroundings
from benchmarks.settings import CurateBenchmark
from megatron_huatuo.corpus.account import Account
from megatron_huatuo.corpus.band_search import BandSearch, BandTask
from megatron_huatuo.corpus.merge_shards import CorpusMerge
from megatron_huatuo.corpus.shard_files import KEY_DTYPE
from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.storage.jsonl import dump_line
from megatron_huatuo.storage.manifest import sha256_file, write_json
from megatron_huatuo.storage.records import Document
from megatron_huatuo.text.minhash import NUM_PERMUTATIONS
from megatron_huatuo.text.near_duplicates import NUM_BANDS, SIGNATURES, write_band_keys

_PASSAGES_A_SHARD = 250_000
_EXACT, _NEAR = 0.05, 0.15  # shares of the passages that repeat an earlier one, and that nearly do
_CHANGED = (0.02, 0.2)  # of a near-duplicate's numbers: some are not similar enough
_TEXT = "原发性高血压患者应限制钠盐摄入，控制体重，规律运动，并遵医嘱长期服药，定期监测血压与靶器官损害。" * 2
_THRESHOLD = 0.8


def run(settings: CurateBenchmark) -> list[dict[str, Any]]:
    """Seconds of CPU and peak memory of each step for each number of passages."""
    measured: dict[str, list[dict[str, float]]] = {}
    for passages in settings.passages:
        with tempfile.TemporaryDirectory(dir=settings.directory) as folder:
            for step, figures in _measure(Path(folder), passages):
                measured.setdefault(step, []).append({"passages": passages, **figures})
                print(f"{passages:,} passages, {step}: {figures}", flush=True)
    return [_record(step, figures, runs[0]) for step, runs in measured.items() for figures in runs]


def _measure(folder: Path, passages: int) -> Iterator[tuple[str, dict[str, float]]]:
    shards = write_shards(folder / "shards", passages)
    search = BandSearch(shards, folder / "pairs", _THRESHOLD)
    yield "search and merge in one process", _in_process(_merge, shards, search, folder / "one")
    yield f"search, {NUM_BANDS} tasks in turn", _in_process(_search, search)
    yield "merge of what tasks found", _in_process(_merge, shards, search, folder / "tasks")
    for file in ("documents.jsonl", "rejected.jsonl"):
        if sha256_file(folder / "one" / file) != sha256_file(folder / "tasks" / file):
            raise HuatuoError(f"tasks gave another {file} than one process, {passages} passages. This is a bug.")


def _merge(shards: list[Path], search: BandSearch, target: Path) -> None:
    target.mkdir()
    CorpusMerge(shards, target, max_bad_lines=0).write(search)


def _search(search: BandSearch) -> None:
    for rank in range(search.count_tasks()):
        BandTask(search).run(None, rank)


def _in_process(function: Callable[..., None], *arguments: Any) -> dict[str, float]:
    """Run in a process of its own: seconds by the clock and on the processor, and peak memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_figures, args=(sender, function, *arguments))
    process.start()
    sender.close()
    try:
        figures: dict[str, float] = receiver.recv()
    except EOFError as error:
        raise HuatuoError("a step of the benchmark failed; what it said is above.") from error
    process.join()
    return figures


def _send_figures(sender: Any, function: Callable[..., None], *arguments: Any) -> None:
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    function(*arguments)
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    peak = _status("VmHWM")  # of it, the pages of files count once they are mapped: they can be taken back at any time
    sender.send({"wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": peak})


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def _record(step: str, figures: dict[str, float], smallest: dict[str, float]) -> dict[str, Any]:
    cost, cost_of_smallest = (1e6 * one["cpu_s"] / one["passages"] for one in (figures, smallest))
    return {
        "name": f"curate: {step}, {figures['passages']:,} passages",
        "ours": cost,
        "peer": cost_of_smallest,
        "peer_name": f"the same for {smallest['passages']:,} passages",
        "ratio": cost / cost_of_smallest,
        "unit": "µs of CPU a passage",
        "runs": {"ours": [figures]},
        **surroundings(("numpy",)),
    }


def write_shards(folder: Path, passages: int) -> list[Path]:
    """Shards of so many passages in all."""
    draw = np.random.default_rng(17)
    shards: list[Path] = []
    for start in range(0, passages, _PASSAGES_A_SHARD):
        shard, number = folder / f"{len(shards):05d}", min(_PASSAGES_A_SHARD, passages - start)
        shard.mkdir(parents=True)
        earlier = shards[draw.integers(len(shards))] if shards else None
        _write_keys_and_signatures(shard, start, number, earlier, draw)
        _write_passages(shard, start, number)
        shards.append(shard)
    return shards


def _write_keys_and_signatures(
    shard: Path, start: int, number: int, earlier: Path | None, draw: np.random.Generator
) -> None:
    """A copy is one of a passage of the earlier shard, the first shard's of its own first half."""
    keys = np.empty(number, KEY_DTYPE)
    keys["id"] = np.arange(start, start + number, dtype=np.uint64)
    for half in ("text_high", "text_low"):
        keys[half] = draw.integers(0, 2**64, number, dtype=np.uint64)
    signatures = draw.integers(0, 2**32, (number, NUM_PERMUTATIONS), dtype=np.uint32)
    originals = (keys, signatures) if earlier is None else _read_shard(earlier)
    kind = draw.random(number)
    for share, is_exact in ((kind < _EXACT, True), ((kind >= _EXACT) & (kind < _EXACT + _NEAR), False)):
        copies = np.flatnonzero(share)
        if earlier is None:
            copies = copies[copies >= number // 2]
        of = draw.integers(0, min(number, len(originals[0])) // 2, len(copies))
        copied = originals[1][of]
        if is_exact:
            for half in ("text_high", "text_low"):
                keys[half][copies] = originals[0][half][of]
        else:
            changed = draw.random(copied.shape) < draw.uniform(*_CHANGED, (len(copies), 1))
            copied = np.where(changed, signatures[copies], copied)
        signatures[copies] = copied
    keys.tofile(shard / "keys.bin")
    signatures.tofile(shard / SIGNATURES)
    write_band_keys(shard)


def _read_shard(shard: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint32]]:
    signatures = np.fromfile(shard / SIGNATURES, np.uint32).reshape(-1, NUM_PERMUTATIONS)
    return np.fromfile(shard / "keys.bin", KEY_DTYPE), signatures


def _write_passages(shard: Path, start: int, number: int) -> None:
    """Passages as the corpus has them, {shard.json, passages.jsonl, …}; the keys, not the texts, decide what is equal."""
    origin = {"document": "@", "file": "raw/c4-train.00000-of-01024.json.gz", "line": 1, "offset": 0, "score": 0.5}
    line = dump_line(Document("@", "web", "zh", _TEXT + "@", metadata={"origin": origin}).to_record()).decode()
    with open(shard / "passages.jsonl", "w", encoding="utf-8") as passages:
        passages.writelines(line.replace("@", str(index)) for index in range(start, start + number))
    for name in ("rejected.jsonl", "contamination.jsonl"):
        (shard / name).touch()
    content = {"input": {"path": shard.name, "bytes": 0, "sha256": ""}, "bad_lines": 0, "tolerated": {}}
    write_json(shard / "shard.json", {**content, "account": Account().to_record()})
