"""One process stands for one rank of any number: torch's fake process group under megatron-core's groups.

Invariant: collectives return at once and move nothing, so no value that depends on another rank can be trusted; shapes, sizes
and the order of calls are those of a real rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_huatuo.parallel.parallel_config import ParallelConfig


@contextlib.contextmanager
def fake_rank(parallel: ParallelConfig, rank: int, world_size: int) -> Iterator[None]:
    """megatron-core's groups as rank `rank` of `world_size` has them; ended with the block."""
    create_group = parallel_state.create_group

    def create_fake_group(*arguments: Any, **options: Any) -> Any:
        return create_group(*arguments, **{**options, "backend": None})  # gloo would wait for the others

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        with replaced(parallel_state, "create_group", create_fake_group), replaced(dist, "all_gather_object", _alone):
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=parallel.tensor_model_parallel_size,
                pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
                virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
            )
            yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _alone(found: list[Any], own: Any, group: Any = None) -> None:
    """all_gather_object where every rank says the same."""
    found[:] = [own] * len(found)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute has another value inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
