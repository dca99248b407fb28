#!/usr/bin/env python3
"""Train one pass over a blend:  torchrun --nproc_per_node N tools/train.py --config FILE [--section.key value]…"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import ConfigError, exit_on_error
from megatron_huatuo.log import get_logger, silence_known_warnings
from megatron_huatuo.storage.manifest import check_replaceable, read_json, read_manifest

if TYPE_CHECKING:
    from megatron_huatuo.train.train_config import TrainConfig


@exit_on_error
def main() -> int:
    """Train; the first rank then exports what has finished, where that is wanted."""
    silence_known_warnings()
    from megatron_huatuo.train.train_config import TrainConfig

    parser = argument_parser(
        "Train one pass over a blend with megatron-core. Run it under torchrun; the same command resumes a run. "
        "A file STOP in the run directory, or SIGTERM to the workers, saves and ends it.",
        config_file=True,
    )
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the resolved settings, stop")
    parser.add_argument(
        "--ranks",
        type=int,
        help="with --dry-run: also one step of N ranks at full size on fake tensors; parameters, memory and traffic beside the plan",
    )
    options = parser.instantiate(parser.parse_args())
    config = TrainConfig(**{field.name: options[field.name] for field in dataclasses.fields(TrainConfig)})
    hf_directory = config.checkpoint.export_hf
    if hf_directory is not None:
        check_replaceable(hf_directory, "hf_model")

    from megatron_huatuo.train.launch import launch

    if options.ranks is not None and (not options.dry_run or options.ranks < 1):
        raise ConfigError(
            f"wrong --ranks: got {options.ranks}, need 1 or more, and --dry-run with it. torchrun starts real ranks."
        )
    code = launch(config, dry_run=options.dry_run, ranks=options.ranks)
    if options.ranks is not None:
        print_rehearsal(config, options.ranks)
    if hf_directory is not None and not options.dry_run and os.environ.get("RANK", "0") == "0":
        export(Path(config.run_dir), Path(hf_directory))
    return code


def print_rehearsal(config: TrainConfig, ranks: int) -> None:
    """One step at full size on fake tensors, for the rows of the run's blend."""
    from megatron_huatuo.plan.plan import data_of_blend
    from megatron_huatuo.plan.rehearsal_report import rehearsal_report

    data = data_of_blend(config.data.blend)
    assert data is not None, "launch has read it"
    print("\n".join(f"# {line}" for line in rehearsal_report(config, ranks=ranks, seq_length=data.seq_length)))


def export(run_dir: Path, hf_directory: Path) -> None:
    """Become the command that exports a finished run; returns when there is nothing to export.

    In its place, not beside it: the memory of training is free then, and its failure cannot harm the run.
    """
    from megatron_huatuo.storage.run_files import STATUS, read_training_state, resolve_checkpoint

    if read_json(run_dir / STATUS)["state"] != "finished":
        return
    if (hf_directory / "manifest.json").is_file():
        origin = read_manifest(hf_directory, "hf_model")["checkpoint"]
        if origin.items() <= read_training_state(resolve_checkpoint(run_dir)).items():
            get_logger(__name__).info("exported already: %s", hf_directory)
            return
    tool = Path(__file__).with_name("convert_checkpoint.py")
    command = [sys.executable, str(tool), "export", "--checkpoint", str(run_dir), "--hf", str(hf_directory)]
    get_logger(__name__).info("the run is finished and saved. Exporting it; to repeat: %s", shlex.join(command))
    sys.stdout.flush()
    sys.stderr.flush()
    # Without its rank the new process is a world of its own.
    os.execve(command[0], command, {name: value for name, value in os.environ.items() if name != "RANK"})


if __name__ == "__main__":
    sys.exit(main())
