"""megatron-core's process groups for one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def alone() -> Iterator[None]:
    """Process groups of one rank on the CPU, with megatron-core's seeds."""
    from megatron.core import tensor_parallel

    from megatron_huatuo.parallel.host import enable_host
    from megatron_huatuo.parallel.parallel_config import ParallelConfig
    from megatron_huatuo.parallel.process_groups import destroy_process_groups, initialize_process_groups

    enable_host()
    initialize_process_groups(ParallelConfig(), torch.device("cpu"))
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    yield
    destroy_process_groups()
