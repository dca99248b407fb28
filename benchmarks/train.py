"""Training speed against a plain transformers loop: the same model, weights, rows and number of threads, in one run.

Both train with AdamW in fp32 on the CPU (bf16 on a GPU) over the same data-parallel ranks; the peer is
`LlamaForCausalLM` with SDPA under torch's DistributedDataParallel and fused AdamW (the default of transformers' Trainer),
as the reference recipe has it: each row one causal sequence. Ours runs the same way for the ratio ("whole rows"), and
with isolated documents as it trains by default. The first losses of both are compared before anything is timed. A ratio
is the median over the rounds, in each of which all are timed one after the other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import transformers
from megatron.core import parallel_state

from benchmarks.measure import surroundings
from benchmarks.sample import build_sample_blend
from benchmarks.settings import TrainBenchmark
from megatron_huatuo.dataset.batch import Batch, build_batch
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.log import silence_known_warnings
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.flops import flops_per_token, peak_flops_per_s
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.models.hf_config import config_json
from megatron_huatuo.parallel.host import enable_device, resolve_device
from megatron_huatuo.parallel.process_groups import destroy_process_groups, initialize_process_groups
from megatron_huatuo.train.setup import Training, build_training
from megatron_huatuo.train.step import train_step
from megatron_huatuo.train.train_config import TrainConfig

_PACKAGES = ("torch", "transformers", "megatron-core", "numpy")


class _Step(NamedTuple):
    """Loss of a step, and its seconds in forward, backward, gradient reduction and optimizer (ours alone knows them)."""

    loss: float
    core_s: float = math.nan


@dataclasses.dataclass(frozen=True)
class Size:
    """Model and batch of the benchmark."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    ffn_hidden_size: int
    vocab_size: int
    seq_length: int
    micro_batch_size: int
    global_batch_size: int


SIZES = {
    "toy": Size(192, 2, 6, 512, 3072, 256, 1, 2),
    "small": Size(512, 8, 8, 1408, 4096, 512, 1, 4),
    # A 7B-shaped stack cut to fit one card.
    "7b-cut": Size(4096, 8, 32, 11008, 32000, 4096, 1, 4),
}


def run(settings: TrainBenchmark) -> list[dict]:
    """Train ours and the peer in turn and compare tokens per second."""
    if settings.size not in SIZES:
        raise ConfigError(f"wrong size: got {settings.size!r}, need one of {', '.join(SIZES)}.")
    chosen = SIZES[settings.size]
    kind = resolve_device(settings.device)
    if chosen.global_batch_size % (settings.ranks * chosen.micro_batch_size):
        raise ConfigError(
            f"wrong ranks: got {settings.ranks}, need a divisor of {chosen.global_batch_size} rows per step."
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needed = chosen.global_batch_size * settings.steps * (settings.repeats + 1)
        epochs = 1 + needed * chosen.seq_length // 20_000
        build_sample_blend(folder, seq_length=chosen.seq_length, vocab_size=min(chosen.vocab_size, 3072), epochs=epochs)
        _write_peer(folder / "peer", _architecture(chosen))
        arguments = (settings.ranks, str(folder), chosen, settings.steps, settings.repeats, kind)
        multiprocessing.start_processes(_rank, arguments, nprocs=settings.ranks, start_method="spawn")
        timings = json.loads((folder / "timings.json").read_text("utf-8"))
    return _records(timings, settings.size, chosen, settings.ranks, settings.steps, kind)


def _architecture(size: Size) -> Architecture:
    return dataclasses.replace(
        get_preset("toy"),
        hidden_size=size.hidden_size,
        num_layers=size.num_layers,
        num_attention_heads=size.num_attention_heads,
        num_query_groups=size.num_attention_heads,
        head_dim=size.hidden_size // size.num_attention_heads,
        ffn_hidden_size=size.ffn_hidden_size,
        vocab_size=size.vocab_size,
        max_position_embeddings=size.seq_length,
    )


def _write_peer(directory: Path, architecture: Architecture) -> None:
    """First weights that both load."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**config_json(architecture, "float32"))
    transformers.LlamaForCausalLM(config).save_pretrained(directory)


def _rank(rank: int, ranks: int, folder: str, size: Size, steps: int, repeats: int, kind: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    silence_known_warnings()
    torch.set_num_threads(1)
    backend = "gloo" if kind == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    device = enable_device(kind)
    config = _config(folder, size, kind)
    initialize_process_groups(config.parallel, device)
    rows = PackedRows(f"{folder}/blend")
    training = build_training(config, _architecture(size), device, span=1000)
    for group in training.optimizer.param_groups:
        group["lr"] = config.optimizer.lr
    peer = _Peer(f"{folder}/peer", device, config)
    layout = BatchLayout(
        size.global_batch_size,
        size.micro_batch_size,
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )
    candidates: dict[str, Callable[[int], _Step]] = {
        "whole rows": lambda start: _our_step(training, rows, layout, start, device, isolate=False),
        "transformers": lambda start: peer.step(_batches(rows, layout, start, device, isolate=False)),
        "isolated documents": lambda start: _our_step(training, rows, layout, start, device, isolate=True),
    }
    timings = _measure(candidates, size.global_batch_size, steps, repeats, device)
    if rank == 0:
        Path(folder, "timings.json").write_text(json.dumps(timings), "utf-8")
    destroy_process_groups()


def _config(folder: str, size: Size, kind: str) -> TrainConfig:
    config = TrainConfig()
    config.model.init_from = f"{folder}/peer"
    config.training.precision = "fp32" if kind == "cpu" else "bf16"
    config.training.micro_batch_size = size.micro_batch_size
    config.training.global_batch_size = size.global_batch_size
    config.parallel.overlap_grad_reduce = kind == "cuda"
    return config


def _batches(rows: PackedRows, layout: BatchLayout, start: int, device: torch.device, *, isolate: bool) -> list[Batch]:
    return [
        build_batch(rows.read(layout.rows(start, index)), device, isolate_documents=isolate)
        for index in range(layout.num_microbatches)
    ]


def _our_step(
    training: Training, rows: PackedRows, layout: BatchLayout, start: int, device: torch.device, *, isolate: bool
) -> _Step:
    batches = _batches(rows, layout, start, device, isolate=isolate)
    result = train_step(training, batches, len(rows.source_names), False)
    parts = ("forward_backward", "gradient_reduction", "optimizer")
    return _Step(result.lm_loss, sum(result.seconds[part] for part in parts))


class _Peer:
    """The plain loop: transformers' model, torch's DistributedDataParallel and AdamW."""

    def __init__(self, directory: str, device: torch.device, config: TrainConfig) -> None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        model = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")
        model.config.use_cache = False
        model.train().to(device)
        self.model = torch.nn.parallel.DistributedDataParallel(model) if dist.get_world_size() > 1 else model
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._clip = settings.clip_grad

    def step(self, batches: list[Batch]) -> _Step:
        """One optimizer step over the global batch."""
        counts = torch.stack([batch.loss_mask.sum() for batch in batches]).sum()
        sums = torch.zeros((), device=counts.device)
        dist.all_reduce(counts)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with _no_sync(self.model, not last):
                logits = self.model(input_ids=batch.tokens).logits.float()
                losses = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch.labels.flatten(), reduction="none"
                )
                loss = (losses * batch.loss_mask.flatten()).sum()
                (loss * dist.get_world_size() / counts).backward()
            sums += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        dist.all_reduce(sums)
        return _Step(float(sums / counts))


def _no_sync(model: Any, wanted: bool) -> Any:
    return model.no_sync() if wanted and hasattr(model, "no_sync") else torch.enable_grad()


def _measure(
    candidates: dict[str, Callable[[int], _Step]], rows_per_step: int, steps: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """{wall_s, cpu_s: of all ranks, core_s} by candidate, one number a round; and the first losses. Every other round goes
    backwards through the candidates; the first one is not measured."""
    names = ("wall_s", "cpu_s", "core_s")
    timings: dict[str, dict[str, list[float]]] = {name: {candidate: [] for candidate in candidates} for name in names}
    first: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name, step in list(candidates.items())[:: -1 if repeat % 2 else 1]:
            dist.barrier()
            began, began_cpu = time.perf_counter(), time.process_time()
            done = [step((repeat * steps + index) * rows_per_step) for index in range(steps)]
            if device.type == "cuda":
                torch.cuda.synchronize()
            wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
            core_s = sum(one.core_s for one in done)
            of_ranks = torch.tensor([wall_s, cpu_s, core_s], dtype=torch.float64, device=device)
            dist.all_reduce(of_ranks)
            if repeat == 0:
                first[name] = done[0].loss
                continue
            wall_s, cpu_s, core_s = of_ranks.tolist()
            timings["wall_s"][name].append(wall_s / dist.get_world_size())
            timings["cpu_s"][name].append(cpu_s)
            timings["core_s"][name].append(core_s / dist.get_world_size())
    return {**timings, "first_loss": first}


def _records(
    timings: dict[str, Any], size_name: str, size: Size, ranks: int, steps: int, kind: str
) -> list[dict[str, Any]]:
    first = timings["first_loss"]
    difference = abs(first["whole rows"] - first["transformers"])
    allowed = 1e-4 if kind == "cpu" else 2e-2
    if difference > allowed:
        raise ConfigError(f"the two loops differ: first losses {first}, need a difference of at most {allowed}.")
    tokens = size.global_batch_size * size.seq_length * steps
    wall_s, cpu_s = timings["wall_s"], timings["cpu_s"]
    rates = {name: tokens / statistics.median(runs) for name, runs in wall_s.items()}
    quiet = all(statistics.median(cpu_s[name]) >= 0.9 * ranks * statistics.median(wall_s[name]) for name in rates)
    flops = flops_per_token(_architecture(size), size.seq_length)
    peak = peak_flops_per_s(torch.cuda.get_device_name()) if kind == "cuda" else None
    records = []
    for name in ("whole rows", "isolated documents"):
        title = f"train {size_name}, {ranks} {kind} ranks, {name}"
        outside = 1.0 - sum(timings["core_s"][name]) / sum(wall_s[name])
        records += [
            {
                "name": title,
                "ours": rates[name],
                "peer": rates["transformers"],
                "peer_name": "transformers + DistributedDataParallel, whole rows",
                "ratio": _ratio(wall_s, name) if quiet or kind == "cuda" else None,
                "cpu_ratio": _ratio(cpu_s, name),
                "unit": "tokens/s",
                "model_tflops_per_s": rates[name] * flops / 1e12,
                "mfu": rates[name] * flops / ranks / peak if peak else None,
                "first_losses": first,
                "workload": _workload(size, ranks, kind),
                "runs": {"ours": wall_s[name], "peer": wall_s["transformers"]},
                **surroundings(_PACKAGES),
            },
            {
                "name": f"{title}: outside of forward, backward and update",
                "ours": 100 * outside,
                "peer": None,
                "ratio": None,
                "unit": "% of a step",
                "runs": {},
                **surroundings(_PACKAGES),
            },
        ]
    return records


def _workload(size: Size, ranks: int, kind: str) -> dict[str, Any]:
    """What was trained, as tools/plan_run.py --calibration reads it."""
    return {
        "device": torch.cuda.get_device_name() if kind == "cuda" else f"CPU {platform.machine()}",
        "architecture": _architecture(size).to_dict(),
        "seq_length": size.seq_length,
        "micro_batch_size": size.micro_batch_size,
        "num_microbatches": size.global_batch_size // (size.micro_batch_size * ranks),
        "data_parallel": ranks,
        "precision": "fp32" if kind == "cpu" else "bf16",
    }


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    """How many times as fast as the peer: the median over the rounds."""
    return statistics.median(theirs / ours for theirs, ours in zip(seconds["transformers"], seconds[name], strict=True))
