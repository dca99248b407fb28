"""Without a CUDA device every test of this folder skips, and says so."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _cuda_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")
