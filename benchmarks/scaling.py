"""Tables of docs/scaling.md: the quickest planned layout of each backbone on 1 to 64 nodes, and what limits it.

    python -m benchmarks.scaling --write docs/scaling.md

Everything is planned, nothing measured. Strong scaling keeps the recipe's 128 rows per step, weak scaling gives every GPU 4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.published import write_between_markers
from megatron_huatuo.plan.gpus import get_gpu
from megatron_huatuo.plan.layouts import layout_name, rank_layouts
from megatron_huatuo.plan.plan import GIB, Cluster, Plan, PlannedData
from megatron_huatuo.train.train_config import TrainConfig

BACKBONES = {"7B": "baichuan2-7b", "13B": "baichuan2-13b", "34B": "yi-34b"}
NODES = (1, 2, 4, 8, 16, 32, 64)
GPUS = ("a100-80gb", "h100")
RECIPE_ROWS, ROWS_PER_GPU = 128, 4
_WAITING = {
    "tensor_parallel": "tensor parallelism",
    "pipeline": "pipeline",
    "data_parallel": "data parallelism",
    "recomputation": "recomputation",
    "optimizer": "optimizer",
}


@dataclass(frozen=True)
class Scaled:
    """The quickest layout of one backbone on some nodes; plan is None where none fits."""

    backbone: str
    gpu: str
    nodes: int
    plan: Plan | None


def best_plan(backbone: str, gpu: str, nodes: int, global_batch_size: int) -> Scaled:
    """Plan all layouts of 4,096-token rows with both overlaps on; 8 GPUs per node."""
    config = TrainConfig()
    config.model.preset = BACKBONES[backbone]
    config.parallel.overlap_grad_reduce = config.parallel.overlap_param_gather = True
    config.training.global_batch_size = global_batch_size
    fitting = rank_layouts(config, Cluster(get_gpu(gpu), 8 * nodes), PlannedData(None, 4096)).fitting
    return Scaled(backbone, gpu, nodes, fitting[0] if fitting else None)


def scale(backbone: str, gpu: str, *, strong: bool) -> list[Scaled]:
    """One backbone on 1 to 64 nodes."""
    rows = (RECIPE_ROWS if strong else 8 * ROWS_PER_GPU * nodes for nodes in NODES)
    return [best_plan(backbone, gpu, nodes, batch) for nodes, batch in zip(NODES, rows, strict=True)]


def table_rows(scaled: list[Scaled]) -> Iterator[str]:
    """Lines of Markdown; efficiency is tokens/s/GPU over that of the fewest nodes that hold the model."""
    first = next((one.plan for one in scaled if one.plan), None)
    for one in scaled:
        head = f"| {one.backbone} | {8 * one.nodes} × {one.gpu} |"
        if one.plan is None or first is None:
            yield f"{head} no layout fits | | | | | |"
            continue
        plan = one.plan
        efficiency = plan.tokens_per_s_per_gpu / first.tokens_per_s_per_gpu
        parts = {name: seconds for name, seconds in plan.step.parts().items() if name in _WAITING}
        largest = max(parts, key=lambda name: parts[name])
        yield (
            f"{head} {layout_name(plan.config, plan.cluster.gpus)} | {plan.memory.total / GIB:.0f} | {plan.step_time_s:.3g} | "
            f"{plan.tokens_per_s_per_gpu:,.0f} | {plan.mfu:.0%} | {efficiency:.0%} | "
            f"{_WAITING[largest]} {parts[largest] / plan.step_time_s:.0%} |"
        )


def format_table(*, strong: bool) -> str:
    """One table of all backbones and GPUs."""
    lines = [
        "| model | GPUs | quickest layout | GiB | s per step | tokens/s/GPU | MFU | efficiency | largest loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for backbone in BACKBONES:
        for gpu in GPUS:
            lines += table_rows(scale(backbone, gpu, strong=strong))
    return "\n".join(lines)


def main() -> int:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the tables between the markers of this document"
    )
    options = parser.parse_args()
    if options.write is not None:
        for name, strong in (("strong scaling", True), ("weak scaling", False)):
            write_between_markers(options.write, name, format_table(strong=strong))
        return 0
    print(format_table(strong=True))
    print(format_table(strong=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
