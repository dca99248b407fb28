#!/usr/bin/env python3
"""Will a run fit, how long will it take, and which layout is quickest? Planned, without a GPU."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from jsonargparse import Namespace

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.plan.calibration import read_calibration
from megatron_huatuo.plan.gpus import GPUS, get_gpu
from megatron_huatuo.plan.layouts import Layouts, check_plan, rank_layouts
from megatron_huatuo.plan.links import NETWORKS
from megatron_huatuo.plan.plan import Cluster, PlannedData, data_of_blend, plan_run
from megatron_huatuo.plan.plan_text import format_layouts, format_plan, plan_record
from megatron_huatuo.storage.manifest import write_json
from megatron_huatuo.train.observers.received import rates_of_run
from megatron_huatuo.train.train_config import TrainConfig


def parse_config(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, Namespace]:
    """The training configuration, and the options of this tool."""
    parser = argument_parser(__doc__ or "", config_file=True)
    add = parser.add_argument
    add("--gpu", type=str, required=True, metavar="NAME", help=f"one of {', '.join(GPUS)}")
    add("--gpus", type=int, required=True, metavar="N", help="GPUs of the run, all nodes together")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="GPUs of one node")
    add("--network", type=str | None, default=None, metavar="NAME", help=f"between nodes: one of {', '.join(NETWORKS)}")
    add("--network-gb-per-s", type=float | None, default=None, metavar="X", help="of one GPU, instead of --network")
    add("--host-memory-gib", type=float | None, default=None, metavar="X", help="memory of one node")
    add("--storage-gb-per-s", type=float, default=10.0, metavar="X", help="writes to the shared file system, all nodes")
    add("--usd-per-gpu-hour", type=float | None, default=None, metavar="X", help="price, for the cost of the run")
    add("--rows", type=int | None, default=None, metavar="N", help="rows (default: of data.blend)")
    add("--seq-length", type=int | None, default=None, metavar="N", help="default: of data.blend, 4096")
    add(
        "--document-tokens",
        type=float | None,
        default=None,
        metavar="X",
        help="mean length (default: of data.blend, a row)",
    )
    add("--calibration", type=str, nargs="*", default=[], metavar="FILE",
        help="records of benchmark.py train --json, outputs of check_cluster.py")  # fmt: skip
    add("--layouts", type=bool, nargs="?", const=True, default=False, help="rank every layout by predicted time")
    add("--json", type=str | None, default=None, metavar="FILE", help="write the plan and all layouts here")
    parser.add_class_arguments(TrainConfig)
    options = parser.instantiate(parser.parse_args(arguments))
    return TrainConfig(**{field.name: options[field.name] for field in dataclasses.fields(TrainConfig)}), options


def _cluster(options: Namespace) -> Cluster:
    names = (
        "gpus",
        "gpus_per_node",
        "network",
        "network_gb_per_s",
        "host_memory_gib",
        "storage_gb_per_s",
        "usd_per_gpu_hour",
    )
    cluster = Cluster(get_gpu(options.gpu), **{name: options[name] for name in names})
    calibration = read_calibration(options.calibration, cluster.gpu, cluster.links())
    return dataclasses.replace(cluster, calibration=calibration)


@exit_on_error
def main() -> None:
    """Print the plan; refuse what does not fit."""
    config, options = parse_config()
    data = data_of_blend(config.data.blend) or PlannedData(None, 4096)
    given = {name: options[name] for name in ("rows", "seq_length", "document_tokens") if options[name] is not None}
    plan = plan_run(config, _cluster(options), dataclasses.replace(data, **given))
    print(format_plan(plan))
    layouts = rank_layouts(config, plan.cluster, plan.data) if options.layouts or options.json else Layouts([], [])
    if options.layouts:
        print(f"\n{format_layouts(layouts)}")
    rates = rates_of_run(config) if data.rows is not None else None
    if rates is not None:
        print("\n" + "\n".join(rates.describe()))
        rates.warn_of_low_rates()
    if options.json:
        record = plan_record(plan, layouts)
        write_json(options.json, record | ({"learning_rate_by_source": rates.to_plain()} if rates else {}))
    check_plan(plan)


if __name__ == "__main__":
    sys.exit(main())
