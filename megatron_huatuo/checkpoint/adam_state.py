"""Three seams between torch's AdamW and megatron-core's distributed optimizer, where Transformer Engine and apex are absent
or, on the CPU, not used.

Their fused Adam keeps one step a group; torch's AdamW keeps one a parameter, as a tensor. megatron-core 0.16 therefore
(1) fails when it gathers the optimizer state into its reshardable format, (2) asks a fresh optimizer for state that it
does not have yet, and (3) gives all parameters one shared step tensor on load, to which AdamW then adds 1 for every
parameter: training would go on silently wrong from the second step.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, distrib_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def _distributed_optimizers(optimizer: MegatronOptimizer) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def leave_step_out_of_gathered_state() -> None:
    """Seam 1. Applied once per process; does nothing where fused optimizers are installed."""
    gather = DistributedOptimizer._get_main_param_and_optimizer_states
    if distrib_optimizer.HAVE_APEX_OR_TE or getattr(gather, "leaves_step_out", False):
        return

    def gather_without_step(self: Any, model_param: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        tensors = gather(self, model_param)
        tensors.pop("step", None)
        return tensors

    def scatter_without_step(self: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main_param = self.optimizer.param_groups[group]["params"][order]
        main_param.data.copy_(tensors["param"])
        for key in ("exp_avg", "exp_avg_sq"):
            self.optimizer.state[main_param][key].copy_(tensors[key])

    gather_without_step.leaves_step_out = True  # type: ignore[attr-defined]
    DistributedOptimizer._get_main_param_and_optimizer_states = gather_without_step
    DistributedOptimizer._set_main_param_and_optimizer_states = scatter_without_step


def give_fresh_state(optimizer: MegatronOptimizer) -> None:
    """Seam 2: zero moments and step for every parameter that has none."""
    if distrib_optimizer.HAVE_APEX_OR_TE:
        return
    for distributed in _distributed_optimizers(optimizer):
        adam = distributed.optimizer
        for group in adam.param_groups:
            for param in group["params"]:
                if not adam.state[param]:
                    adam.state[param] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(param),
                        "exp_avg_sq": torch.zeros_like(param),
                    }


def give_each_parameter_its_step(optimizer: MegatronOptimizer) -> None:
    """Seam 3: after `load_state_dict`, a step tensor of its own for every parameter."""
    if distrib_optimizer.HAVE_APEX_OR_TE:
        return
    for distributed in _distributed_optimizers(optimizer):
        for state in distributed.optimizer.state.values():
            state["step"] = state["step"].clone()


def keep_own_settings(optimizer: MegatronOptimizer) -> None:
    """After `load_state_dict`: settings that the Adam which saved did not have are this one's. Transformer Engine's reads one
    that torch's does not write, so a run that began without the one could not go on with the other."""
    for distributed in _distributed_optimizers(optimizer):
        adam = distributed.optimizer
        for group in adam.param_groups:
            for name, value in adam.defaults.items():
                group.setdefault(name, value)
