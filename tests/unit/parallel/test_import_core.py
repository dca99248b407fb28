"""What starts on a torch without CUDA loads megatron-core without torch.compile's machinery, whatever comes first."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

STARTS = ["train.loop", "cluster.check", "convert.publish"]
CODE = """
import importlib, os, sys
for name in sys.argv[1:]:
    if os.fork() == 0:  # each from nothing but torch
        importlib.import_module(f"megatron_huatuo.{name}")
        loaded = [heavy for heavy in ("torch._dynamo", "torch._inductor") if heavy in sys.modules]
        print(name, loaded or "megatron.core" in sys.modules, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="a torch for CUDA compiles the fused functions")
def test_no_start_loads_the_compiler() -> None:
    command = [sys.executable, "-W", "ignore", "-c", f"import torch\n{CODE}", *STARTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [f"{name} True" for name in STARTS], done.stderr
