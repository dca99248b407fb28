"""Where and with what a run was started: one line of starts.jsonl each time."""

from __future__ import annotations

import collections
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_huatuo import __version__
from megatron_huatuo.log import now
from megatron_huatuo.storage.run_files import STARTS

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "flash-attn", "apex", "numpy")
_JOB = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")


def installed_versions() -> dict[str, str]:
    """Versions that must be equal on all ranks; what is not installed is left out."""
    versions = {"megatron_huatuo": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda is not None and torch.cuda.is_available():
        versions["CUDA"] = torch.version.cuda
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return versions


def record_start(run_dir: Path, iteration: int, isolation: Mapping[str, Any] | None) -> None:
    """Append {time, iteration, hosts: {name: ranks}, versions, isolation, job} to starts.jsonl; all ranks take part, rank 0
    writes.

    iteration: steps done before. isolation: proof that documents are kept apart, of rank 0. job: what Slurm and torchrun call it, empty without them.
    """
    hosts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    if dist.get_rank() == 0:
        entry = {
            "time": now(),
            "iteration": iteration,
            "hosts": dict(collections.Counter(hosts)),
            "versions": installed_versions(),
            "isolation": isolation,
            "job": {name: os.environ[name] for name in _JOB if name in os.environ},
        }
        with open(run_dir / STARTS, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry, ensure_ascii=False) + "\n")
