"""The rehearsed figures of a run beside the planned ones, as text for a person."""

from __future__ import annotations

from megatron_huatuo.plan.memory import rank_memory, rank_parameters
from megatron_huatuo.plan.plan import GIB
from megatron_huatuo.plan.rank_volumes import rank_volumes
from megatron_huatuo.train.rehearsal import StageFigures, rehearse
from megatron_huatuo.train.train_config import TrainConfig


def rehearsal_report(config: TrainConfig, *, ranks: int, seq_length: int) -> list[str]:
    """Rehearse a step on `ranks` ranks and put the plan beside it; `config` is validated. Needs no GPU."""
    found = rehearse(config, world_size=ranks, seq_length=seq_length)
    lines = [
        f"dry run of {ranks} ranks: a step of the first rank of each pipeline stage, on fake tensors. Computed from the settings, "
        "not measured on a GPU; [planned]"
    ]
    for figures in found:
        lines += _stage(config, figures, ranks, seq_length)
    return lines


def _stage(config: TrainConfig, figures: StageFigures, ranks: int, seq_length: int) -> list[str]:
    architecture, parallel = config.model.architecture(), config.parallel
    memory = rank_memory(config, architecture, world_size=ranks, seq_length=seq_length, stage=figures.stage)
    sent = rank_volumes(config, architecture, world_size=ranks, seq_length=seq_length, stage=figures.stage)
    parameters = rank_parameters(
        architecture, parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, figures.stage
    )
    held = ", ".join(
        f"{part} {getattr(figures, part) / GIB:.3g} [{getattr(memory, part) / GIB:.3g}]"
        for part in ("weights", "gradients", "optimizer")
    )
    planned_peak = (memory.total - memory.reserve) / GIB
    volumes = ", ".join(
        f"{purpose.replace('_', ' ')} {figures.sent.get(purpose, 0.0) / GIB:.3g} [{planned / GIB:.3g}]"
        for purpose, planned in sent.items()
        if planned or figures.sent.get(purpose)
    )
    return [
        f"stage {figures.stage}: {figures.parameters:,} parameters [{parameters:,}]",
        f"  memory, GiB: {held}; at the fullest moment {figures.peak / GIB:.3g} [{planned_peak:.3g}, and {memory.reserve / GIB:.3g} "
        "of reserve]",
        f"  sent in a step, GiB: {volumes or 'nothing'}",
    ]
