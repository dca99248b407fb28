"""How fast weights move between Hugging Face directories and checkpoints, and in how much memory.

The peer reads and writes the same bytes with nothing in between, once without and once with sha256, and flushes them to
the disk as a conversion does. A conversion always hashes; it is also timed with a hash that costs nothing, which shows what
the rest of it costs over the plain copy. The model is Llama-2-7B's shape with as many layers as the size asks for; other shapes are held
against it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import Timing, interleave, surroundings
from benchmarks.settings import ConvertBenchmark
from megatron_huatuo.checkpoint import integrity
from megatron_huatuo.convert.import_checkpoint import import_hf
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.convert.write_hf_weights import write_weights
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.models.hf_config import config_json
from megatron_huatuo.models.weight_table import hf_shapes
from megatron_huatuo.storage.manifest import write_json

_PACKAGES = ("torch", "safetensors", "megatron-core")
_CHUNK_BYTES = 16 << 20
_GB = 1e9
_LLAMA = "llama-2-7b"


def run(settings: ConvertBenchmark) -> list[dict[str, Any]]:
    """Import and export against plain copies, and their peak memory at two sizes."""
    if settings.gigabytes < 1:
        raise ConfigError(
            f"wrong gigabytes: got {settings.gigabytes}, need 1 or more, so that there are layers to convert."
        )
    with tempfile.TemporaryDirectory(dir=settings.directory) as name:
        folder = Path(name)
        if settings.shapes:
            return _of_shapes(folder, settings)
        records = []
        for size, is_timed in ((1.0, False), (settings.gigabytes, True)):
            model, checkpoint, out = _write_model(folder / "hf", size), folder / "checkpoint", folder / "out"
            if is_timed:
                records += _rates("import", model, model, out, settings.repeats)
            memory = [_memory("import", size, model, checkpoint)]
            if is_timed:
                unhashed = folder / "unhashed"  # an export holds files against the hashes that their import noted
                with _without_hashing():
                    _convert("import", model, unhashed)
            shutil.rmtree(model)
            if is_timed:
                records += _rates("export", checkpoint, unhashed, out, settings.repeats)
                shutil.rmtree(unhashed)
            memory.append(_memory("export", size, checkpoint, out))
            records += memory
            shutil.rmtree(checkpoint)
            shutil.rmtree(out)
    return records


def _of_shapes(folder: Path, settings: ConvertBenchmark) -> list[dict[str, Any]]:
    """Both directions of every shape, all interleaved with Llama-2-7B's."""
    models = {shape: _write_model(folder / shape, settings.gigabytes, shape) for shape in (_LLAMA, *settings.shapes)}
    sizes = {shape: sum(path.stat().st_size for path in model.iterdir()) / _GB for shape, model in models.items()}
    records = []
    for direction in ("import", "export"):
        sources = models if direction == "import" else {shape: folder / f"{shape}-checkpoint" for shape in models}

        def act(source: Path, direction: str = direction) -> None:
            _convert(direction, source, folder / "out")
            shutil.rmtree(folder / "out")

        if direction == "export":
            for shape, model in models.items():
                _convert("import", model, sources[shape])
        candidates = {shape: functools.partial(act, source) for shape, source in sources.items()}
        timings = interleave(candidates, settings.repeats)
        for shape in settings.shapes:
            ours, theirs = timings[shape], timings[_LLAMA]
            pairs = [
                (sizes[shape] / mine.wall_s) / (sizes[_LLAMA] / other.wall_s)
                for mine, other in zip(ours, theirs, strict=True)
            ]
            record = _rate_record(f"convert: {direction} of {shape}'s shape", ours, theirs, _LLAMA, sizes[shape])
            of_cpu = statistics.median(run.cpu_s for run in theirs) / statistics.median(run.cpu_s for run in ours)
            record |= {"peer_name": f"{_LLAMA}'s shape", "ratio": statistics.median(pairs)}
            record |= {"cpu_ratio": of_cpu * sizes[shape] / sizes[_LLAMA]}
            record |= {"peer": sizes[_LLAMA] / statistics.median(run.wall_s for run in theirs)}
            record["runs"]["threads"] = {"ours": 3, "peer": 3}
            records.append(record)
    return records


def _architecture(gigabytes: float, shape: str = _LLAMA) -> Architecture:
    whole = get_preset(shape)
    tables = dataclasses.replace(whole, num_layers=1)
    one, two = (_bytes(architecture) for architecture in (tables, dataclasses.replace(whole, num_layers=2)))
    return dataclasses.replace(whole, num_layers=max(1, round((gigabytes * _GB - one) / (two - one)) + 1))


def _bytes(architecture: Architecture) -> int:
    return sum(torch.Size(shape).numel() for shape in hf_shapes(architecture).values()) * 2


def _write_model(directory: Path, gigabytes: float, shape: str = _LLAMA) -> Path:
    architecture = _architecture(gigabytes, shape)
    directory.mkdir()
    noise = torch.randn(1 << 20).bfloat16()

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in hf_shapes(architecture).items():
            count = torch.Size(shape).numel()
            yield name, noise.repeat(-(-count // noise.numel()))[:count].reshape(shape)

    write_weights(directory, hf_shapes(architecture), tensors(), torch.bfloat16)
    write_json(directory / "config.json", config_json(architecture, "bfloat16"))
    return directory


def _convert(direction: str, source: Path, target: Path) -> None:
    if direction == "import":
        import_hf(source, target)
    else:
        export_checkpoint(source, target, skip_verification=True)


class _NoHash:
    """Stands for hashlib's objects and costs nothing: every content has the same hash."""

    def __init__(self, _: object = b"") -> None: ...

    def update(self, _: object) -> None: ...

    def hexdigest(self) -> str:
        return "0" * 64


@contextlib.contextmanager
def _without_hashing() -> Iterator[None]:
    """No hash is computed, and nothing is read for one."""
    unread = mock.patch.object(integrity, "sha256_file", lambda *_: _NoHash().hexdigest())
    with mock.patch.object(hashlib, "sha256", _NoHash), unread:
        yield


def _copy(source: Path, target: Path, *, hashing: bool) -> None:
    """Read and write every file of a directory, flushed to the disk, on one thread and through memory in use."""
    target.mkdir()
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as reader, open(target / path.name, "wb", buffering=0) as writer:
            while count := reader.readinto(chunk):
                if hashing:
                    digest.update(chunk[:count])
                writer.write(chunk[:count])
            os.fsync(writer.fileno())


def _rates(direction: str, source: Path, unhashed: Path, target: Path, repeats: int) -> list[dict[str, Any]]:
    """One direction with and without hashing against each peer, all interleaved. unhashed: the source of what does not hash."""

    def into_nothing(action: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            action()
            shutil.rmtree(target)

        return act

    def convert_without_hashing() -> None:
        with _without_hashing():
            _convert(direction, unhashed, target)

    candidates: dict[str, Callable[[], object]] = {
        direction: lambda: _convert(direction, source, target),
        f"{direction} without hashing": convert_without_hashing,
        "read and write": lambda: _copy(unhashed, target, hashing=False),
        "read, hash and write": lambda: _copy(source, target, hashing=True),
    }
    timings = interleave({name: into_nothing(action) for name, action in candidates.items()}, repeats)
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / _GB
    pairs = (  # without hashing on both sides, with it on both, with ours alone
        (f"{direction} without hashing", "read and write"),
        (direction, "read, hash and write"),
        (direction, "read and write"),
    )
    return [
        _rate_record(f"convert: {one}, {size:.1f} GB, against {peer}", timings[one], timings[peer], peer, size)
        for one, peer in pairs
    ]


def _rate_record(name: str, ours: list[Timing], theirs: list[Timing], peer: str, size: float) -> dict[str, Any]:
    """GB/s of both; the ratio is the median over the pairs of neighbouring runs."""
    pairs = [other.wall_s / mine.wall_s for mine, other in zip(ours, theirs, strict=True)]
    return {
        "name": name,
        "ours": size / statistics.median(run.wall_s for run in ours),
        "peer": size / statistics.median(run.wall_s for run in theirs),
        "peer_name": f"{peer} of the same bytes",
        # Conversions wait for the disk, so idle processors are not a sign of a stolen core here.
        "ratio": statistics.median(pairs),
        "cpu_ratio": statistics.median(run.cpu_s for run in theirs) / statistics.median(run.cpu_s for run in ours),
        "unit": "GB/s",
        "runs": {
            "ours": [vars(run) for run in ours],
            "peer": [vars(run) for run in theirs],
            "threads": {"ours": 3, "peer": 1},
        },
        **surroundings(_PACKAGES),
    }


def _memory(direction: str, gigabytes: float, source: Path, target: Path) -> dict[str, Any]:
    """Peak resident memory of a conversion in a process of its own, above what its imports take."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        peak = pool.apply(_peak_bytes, (direction, source, target))
    shapes = hf_shapes(_architecture(gigabytes)).values()
    largest = max(torch.Size(shape).numel() for shape in shapes) * 2
    return {
        "name": f"convert: {direction} of {gigabytes:.0f} GB, peak memory (peer: 2 largest tensors + 1 GB)",
        "ours": peak / _GB,
        "peer": (2 * largest + _GB) / _GB,
        "peer_name": "limit",
        "ratio": peak / (2 * largest + _GB),
        "unit": "GB",
        "runs": {"ours": [peak]},
        **surroundings(_PACKAGES),
    }


def _peak_bytes(direction: str, source: Path, target: Path) -> int:
    before = _high_water_bytes()
    _convert(direction, source, target)
    return _high_water_bytes() - before


def _high_water_bytes() -> int:
    """Peak resident memory of this process. getrusage would count what the parent had when it started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
