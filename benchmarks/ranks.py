"""Functions on ranks of this machine, started as `torchrun --standalone` starts them."""

from __future__ import annotations

import importlib
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from megatron_huatuo.log import silence_known_warnings


def on_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a module's `function(*arguments)` in fresh processes with torchrun's environment; returns their results, rank
    by rank.

    Raises: ChildFailedError when a rank fails; the others are ended then.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
        )
        results = elastic_launch(config, _call)(function.__module__, function.__name__, *arguments)
    return [results[rank] for rank in range(ranks)]


def _call(module: str, name: str, *arguments: Any) -> Any:
    """Named, not pickled: what the module imports has nothing to warn of by then."""
    silence_known_warnings()
    return getattr(importlib.import_module(module), name)(*arguments)
