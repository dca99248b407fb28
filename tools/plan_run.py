#!/usr/bin/env python3
"""Will a run fit, and how long will it take? Planned memory, host memory, disk and time, without a GPU."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from jsonargparse import Namespace

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.plan.gpus import GPUS, get_gpu
from megatron_huatuo.plan.plan import Cluster, check_plan, plan_run, rows_of_blend
from megatron_huatuo.plan.plan_text import format_plan
from megatron_huatuo.train.config import TrainConfig


def parse_config(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, Namespace]:
    """The training configuration, and the options of this tool."""
    parser = argument_parser(__doc__ or "", config_file=True)
    parser.add_argument("--gpu", type=str, required=True, metavar="NAME", help=f"one of {', '.join(GPUS)}")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="GPUs of the run, all nodes together")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="GPUs of one node")
    parser.add_argument("--host-memory-gib", type=float | None, default=None, metavar="X", help="memory of one node")
    parser.add_argument("--mfu", type=float, default=0.45, help="assumed share of the peak; docs/performance.md")
    parser.add_argument("--rows", type=int | None, default=None, metavar="N", help="rows (default: of data.blend)")
    parser.add_argument("--seq-length", type=int | None, default=None, metavar="N", help="default: of data.blend, 4096")
    parser.add_class_arguments(TrainConfig)
    options = parser.instantiate(parser.parse_args(arguments))
    return TrainConfig(**{field.name: options[field.name] for field in dataclasses.fields(TrainConfig)}), options


@exit_on_error
def main() -> None:
    """Print the plan; refuse what does not fit."""
    config, options = parse_config()
    gpu = get_gpu(options.gpu)
    cluster = Cluster(gpu, options.gpus, options.gpus_per_node, options.mfu, options.host_memory_gib)
    blend_rows, blend_length = rows_of_blend(config.data.blend) or (None, 4096)
    rows = blend_rows if options.rows is None else options.rows
    plan = plan_run(config, cluster, seq_length=options.seq_length or blend_length, rows=rows)
    print(format_plan(plan))
    check_plan(plan)


if __name__ == "__main__":
    sys.exit(main())
