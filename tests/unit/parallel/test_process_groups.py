"""Ranks of one job must agree on their kind of device before they wait for each other."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.parallel.process_groups import _refuse_other_devices


@pytest.mark.parametrize("kind", ["tcp", "hash"])
def test_ranks_on_other_devices_are_refused(kind: str) -> None:
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True) if kind == "tcp" else dist.HashStore()
    _refuse_other_devices(store, 0, torch.device("cuda"))
    _refuse_other_devices(store, 1, torch.device("cuda"))
    with pytest.raises(ConfigError, match="ranks have different devices: rank 2 has 'cpu', another one 'cuda'"):
        _refuse_other_devices(store, 2, torch.device("cpu"))
