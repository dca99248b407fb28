"""Host reads of one training step: on a GPU each of them waits for every kernel before it.

Counted on the CPU, where the engine calls the same operators: `.item()`, `float(tensor)`, `bool(tensor)`, boolean indices,
`nonzero`, `.tolist()`, `.cpu()`, `.numpy()`. What the GPU's own kernels do inside is not seen here.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import megatron.core
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_huatuo.dataset.batch import StepBatches
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.parallel.host import enable_device
from megatron_huatuo.parallel.process_groups import initialize_process_groups
from megatron_huatuo.train import step as step_module
from megatron_huatuo.train.inputs import open_inputs
from megatron_huatuo.train.rules import validate
from megatron_huatuo.train.start import start
from megatron_huatuo.train.train_config import TrainConfig
from tests.distributed.engine import make_config
from tests.distributed.runner import run_ranks

_OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
_METHODS = ("cpu", "tolist", "numpy")

# The CPU's attention kernel splits rows by the lengths of their documents; the GPU's kernels take the lengths as a tensor.
IN_MICROBATCHES = {
    "attention_torch.py attend_by_document: tolist",
    "random.py fork: _local_scalar_dense",  # the state of a generator, which lies on the CPU with a GPU too
}
# megatron-core's norm without apex and Transformer Engine: one read per tensor. Their kernel, which GPUs use, has none.
PLAIN_NORM = "utils.py local_multi_tensor_l2_norm: _local_scalar_dense"
IN_UPDATE = {
    "clip_grads.py get_grad_norm_fp32: _local_scalar_dense",  # is a gradient finite, how long are all together
    "step.py train_step: _local_scalar_dense",  # are the sums of losses finite
    "step.py _agree: cpu",  # what all ranks agree on, once per step
    "step.py _agree: tolist",  # of the copy above, which lies on the CPU
}
# Is any token trained, once per chunk: megatron-core 0.16 reads it, 0.19 divides without a read.
if megatron.core.__version__.startswith("0.16."):
    IN_UPDATE.add("finalize_model_grads.py finalize_model_grads: _local_scalar_dense")

Reads = dict[str, collections.Counter[str]]


class _Reads:
    """Counts by phase and by place: file and function of the nearest frame of the engine."""

    def __init__(self) -> None:
        self.phase = "update"
        self.counted: Reads = {"micro-batches": collections.Counter(), "update": collections.Counter()}

    def note(self, operator: str) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if "/megatron_huatuo/" in file or "/megatron/core/" in file:
                phase = (
                    "update" if file.endswith("finalize_model_grads.py") else self.phase
                )  # all backward passes are done
                self.counted[phase][f"{Path(file).name} {frame.f_code.co_name}: {operator}"] += 1
                return
            frame = frame.f_back  # type: ignore[assignment]


class _Operators(TorchDispatchMode):
    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask and name != "index" and args[2].numel() == 1 and not (len(args) > 3 and args[3]):
            by_mask = False  # torch fills by the mask on the device, without counting its places
        if name in _OPERATORS or by_mask:
            self._reads.note(f"{name} by a mask" if by_mask else name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _counted(reads: _Reads) -> Iterator[None]:
    """Operators through torch's dispatcher; the methods, which reach none on the CPU, by wrapping them meanwhile."""
    plain = {name: getattr(torch.Tensor, name) for name in _METHODS}

    def wrapped(name: str) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            reads.note(name)
            return plain[name](*args, **kwargs)

        return method

    try:
        for name in _METHODS:
            setattr(torch.Tensor, name, wrapped(name))
        with _Operators(reads):
            yield
    finally:
        for name in _METHODS:
            setattr(torch.Tensor, name, plain[name])


def _count_step(config: TrainConfig) -> Reads:
    """Reads of the second step of a run, which builds nothing any more."""
    device = enable_device("cpu")
    rows = PackedRows(config.data.blend)
    validate(config, seq_length=rows.seq_length, num_rows=len(rows), world_size=torch.distributed.get_world_size())
    initialize_process_groups(config.parallel, device, 2.0)
    run, reads = start(config, rows, open_inputs(config, rows), device), _Reads()
    batches = StepBatches(rows, run.layout, device)
    plain = step_module.run_microbatches

    def observed(*args: Any, **kwargs: Any) -> torch.Tensor:
        reads.phase = "micro-batches"
        try:
            return plain(*args, **kwargs)
        finally:
            reads.phase = "update"

    step_module.run_microbatches = observed
    try:
        for number in range(2):
            micro_batches, _ = batches.next_step(number * config.training.global_batch_size)
            if number == 0:
                step_module.train_step(run.training, micro_batches, len(rows.source_names), False)
                continue
            with _counted(reads):
                result = step_module.train_step(run.training, micro_batches, len(rows.source_names), False)
    finally:
        step_module.run_microbatches = plain
        batches.close()
    assert result.updated
    return reads.counted


LAYOUTS = {
    "one rank": (1, {}),
    "TP2 with sequence parallelism": (2, {"tensor_model_parallel_size": 2}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_read_inside_a_micro_batch_and_only_the_known_ones_per_step(
    name: str, sample_blend: Path, small_model: Path, tmp_path: Path
) -> None:
    ranks, parallel = LAYOUTS[name]
    model = {"preset": None, "hf": str(small_model)}
    config = make_config(tmp_path / "run", sample_blend, model=model, parallel=parallel)
    for reads in run_ranks(ranks, _count_step, config):
        assert set(reads["micro-batches"]) <= IN_MICROBATCHES
        update = {place: count for place, count in reads["update"].items() if place != PLAIN_NORM}
        assert set(update) == IN_UPDATE
        assert sum(update.values()) <= 12, update


def test_the_counter_sees_every_kind_of_read() -> None:
    """A read that is added shows by its place: here each kind is made by a function that poses as the engine's."""
    tensor, reads = torch.arange(3.0), _Reads()
    source = (
        "def read(t):\n"
        "    t.sum().item(); float(t[0]); bool(t[1] > 0); t[t > 1]; t.nonzero(); t.tolist(); t.cpu(); t.numpy()\n"
        "    t.masked_select(t > 0); t.clone()[t > 1] = 0; t.clone()[t > 0] = t[1:]\n"
    )
    scope: dict[str, Any] = {}
    exec(compile(source, "/x/megatron_huatuo/engine.py", "exec"), scope)
    with _counted(reads):
        scope["read"](tensor)
    counted = {place.removeprefix("engine.py read: "): count for place, count in reads.counted["update"].items()}
    assert counted == {
        "_local_scalar_dense": 3,
        "index by a mask": 1,
        "nonzero": 1,
        "masked_select": 1,
        "tolist": 1,
        "cpu": 1,
        "numpy": 1,
        "index_put_ by a mask": 1,
    }
