"""A loaded optimizer has the settings that it reads, whichever Adam saved them."""

from __future__ import annotations

import types

import torch

from megatron_huatuo.checkpoint.adam_state import keep_own_settings


def test_settings_that_the_saving_adam_did_not_have_are_the_loading_ones() -> None:
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1e-3, weight_decay=0.1)
    adam.defaults["bias_correction"] = True  # as Transformer Engine's FusedAdam, which reads it from every group
    adam.param_groups[0]["weight_decay"] = 0.3
    keep_own_settings(types.SimpleNamespace(optimizer=adam))  # type: ignore[arg-type]
    assert adam.param_groups[0]["bias_correction"] is True and adam.param_groups[0]["weight_decay"] == 0.3
