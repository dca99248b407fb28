#!/usr/bin/env python3
"""Train one pass over a blend:  torchrun --nproc_per_node N tools/train.py --config FILE [--section.key value]…"""

from __future__ import annotations

import sys

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.log import silence_known_warnings


@exit_on_error
def main() -> int:
    silence_known_warnings()
    from megatron_huatuo.train import config as sections

    parser = argument_parser(
        "Train one pass over a blend with megatron-core. Run it under torchrun; the same command resumes a run. "
        "A file STOP in the run directory, or SIGTERM to the workers, saves and ends it.",
        config_file=True,
    )
    parser.add_argument("--run_dir", type=str, default="runs/train", help="directory of the run")
    parser.add_argument("--model", type=sections.ModelConfig, default=sections.ModelConfig())
    parser.add_argument("--data", type=sections.DataConfig, default=sections.DataConfig())
    parser.add_argument("--parallel", type=sections.ParallelConfig, default=sections.ParallelConfig())
    parser.add_argument("--optimizer", type=sections.OptimizerSettings, default=sections.OptimizerSettings())
    parser.add_argument("--schedule", type=sections.ScheduleConfig, default=sections.ScheduleConfig())
    parser.add_argument("--training", type=sections.TrainingConfig, default=sections.TrainingConfig())
    parser.add_argument("--checkpoint", type=sections.CheckpointConfig, default=sections.CheckpointConfig())
    parser.add_argument("--logging", type=sections.LoggingConfig, default=sections.LoggingConfig())
    parser.add_argument("--runtime", type=sections.RuntimeConfig, default=sections.RuntimeConfig())
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the resolved settings, stop")
    arguments = parser.instantiate(parser.parse_args())
    settings = {key: value for key, value in vars(arguments).items() if key not in ("config", "dry_run")}

    from megatron_huatuo.train.launch import launch

    return launch(sections.TrainConfig(**settings), dry_run=arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
