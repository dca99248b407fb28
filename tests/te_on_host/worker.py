"""Runs under the harness, forked from a process that has loaded the libraries once for one device.

`python -m tests.te_on_host.worker HOST`, HOST as JSON: {"capability": 80, "fp32_layers": false}. A line of stdin is
a run: {"ranks": [{"log": FILE, "environment": {}}], "run_dir", "blend", "sections": as for `engine.make_config`, "report":
FILE}; the answer on stdout is the list of exit codes.

fp32_layers: also runs in fp32 get Transformer Engine's layers and fused attention, which on a GPU would round to TF32; the
gates of the project and of Transformer Engine are opened for it (python -O leaves out the latter's assertions).
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.te_on_host import device, environment, extension, report


def _load_engine() -> None:
    """Import Transformer Engine as on a GPU."""
    sys.path.append(str(environment.packages()))
    extension.install(environment.packages(), environment.fake_device())
    import transformer_engine.pytorch  # noqa: F401


def _custom_operators_on_cpu() -> None:
    """flash-attn registers its kernels as operators for CUDA tensors."""
    define = torch.library.custom_op

    def custom_op(*arguments: Any, device_types: Any = None, **options: Any) -> Any:
        return define(*arguments, device_types=None if device_types == "cuda" else device_types, **options)

    torch.library.custom_op = custom_op


def _note_attention() -> None:
    """Count which of Transformer Engine's three attentions a layer reached, in which layout."""
    from transformer_engine.pytorch.attention.dot_product_attention import backends
    from transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention import DotProductAttention

    layer = [0]
    choose = DotProductAttention.forward

    @functools.wraps(choose)
    def chosen(self: Any, *inputs: Any, **options: Any) -> Any:
        layer[0] = self.layer_number
        return choose(self, *inputs, **options)

    DotProductAttention.forward = chosen
    for name in ("FlashAttention", "FusedAttention", "UnfusedDotProductAttention"):
        kind = getattr(backends, name)
        kind.forward = _noting(kind.forward, name, layer)


def _noting(forward: Any, name: str, layer: list[int]) -> Any:
    @functools.wraps(forward)
    def noted(self: Any, *inputs: Any, **options: Any) -> Any:
        known = {key: options.get(key) for key in ("qkv_layout", "attn_mask_type", "window_size")}
        report.note("attention", name, f"layer {layer[0]}", *known.values())
        return forward(self, *inputs, **options)

    return noted


def _open_precision_gates() -> None:
    from transformer_engine.pytorch.attention.dot_product_attention import utils

    from megatron_huatuo.models.core import attention_backend

    obstacle, parameters = attention_backend._obstacle, utils.AttentionParams

    def as_bf16(**options: Any) -> Any:
        return parameters(**{**options, "qkv_dtype": torch.bfloat16})

    attention_backend._obstacle = lambda module, device, precision: obstacle(module, device, "bf16")
    utils.AttentionParams = as_bf16


def _flex_attention_by_document() -> None:
    """torch's FlexAttention has no backward pass on a CPU."""
    from megatron_huatuo.models.core import attention_flex, attention_torch

    attention_flex.attend_with_flex = attention_torch.attend_by_document


def _run_rank(run: dict[str, Any], place: dict[str, Any]) -> int:
    """One rank, in a process of its own; returns its exit code."""
    with open(place["log"], "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(place["environment"])
    from megatron_huatuo.errors import HuatuoError
    from megatron_huatuo.train import launch
    from tests.distributed.engine import make_config

    sections = run["sections"]
    sections["runtime"] = {"device": "cuda", **sections.get("runtime", {})}
    leave, reached = launch.leave_at_once, Path(f"{run['report']}.{os.environ['RANK']}")

    def leave_with_report(error: BaseException) -> None:
        report.write(reached)
        leave(error)

    launch.leave_at_once = leave_with_report
    try:
        code = launch.launch(make_config(run["run_dir"], run["blend"], **sections))
    except HuatuoError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    report.write(reached)
    return code


def _fork(run: dict[str, Any], place: dict[str, Any]) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        code = _run_rank(run, place)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Load the libraries, then answer."""
    host, answers = json.loads(sys.argv[1]), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    device.install(host["capability"])
    _custom_operators_on_cpu()
    _load_engine()
    device.gloo_for_nccl()
    _flex_attention_by_document()
    _note_attention()
    if host["fp32_layers"]:
        _open_precision_gates()
    importlib.import_module("megatron_huatuo.train.launch")
    importlib.import_module("tests.distributed.engine")
    for line in sys.stdin:
        run = json.loads(line)
        processes = [_fork(run, place) for place in run["ranks"]]
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        print(json.dumps(codes), file=answers, flush=True)


if __name__ == "__main__":
    main()
