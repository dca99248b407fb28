"""What differs between the releases of megatron-core that this project runs on.

Invariant: code that asks for a release of megatron-core is here; where a release adds a call or a name, the others do
without it.
"""

from __future__ import annotations

import megatron_huatuo.parallel.import_core  # noqa: F401 (first)

import inspect

import megatron.core
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_huatuo.errors import ConfigError

# Releases whose code the replaced functions of host.py and checkpoint/ were compared with. What ran on each: docs/support_matrix.md.
TESTED = ((0, 16), (0, 19))


def refuse_untested() -> None:
    """Raises: ConfigError for a megatron-core that the replaced functions were not written for."""
    found = tuple(int(part) for part in megatron.core.__version__.split(".")[:2])
    if found not in TESTED:
        names = " or ".join(f"{major}.{minor}" for major, minor in TESTED)
        raise ConfigError(
            f"megatron-core {megatron.core.__version__} is untested without CUDA: need {names}. "
            "Install megatron-core==0.16.1, or 0.19.2 for Python 3.12."
        )


def wrap_data_parallel(
    config: TransformerConfig,
    ddp_config: DistributedDataParallelConfig,
    module: torch.nn.Module,
    *,
    disable_bucketing: bool,
) -> DistributedDataParallel:
    """`DistributedDataParallel` of a model chunk.

    megatron-core 0.19 asks for the places of all parameters in its buffers; 0.16 computes the same places itself.
    disable_bucketing: one bucket for the whole chunk.
    """
    settings = {}
    if "full_param_layout" in inspect.signature(DistributedDataParallel).parameters:
        one_bucket = disable_bucketing or parallel_state.get_pipeline_model_parallel_rank() > 0
        settings["full_param_layout"] = DistributedOptimizer.compute_full_param_layout(
            [param for param in module.parameters() if param.requires_grad],
            None if one_bucket else ddp_config.bucket_size,
            parallel_state.get_data_parallel_world_size(with_context_parallel=True),
            ddp_config,
        )
    return DistributedDataParallel(config, ddp_config, module, disable_bucketing=disable_bucketing, **settings)
