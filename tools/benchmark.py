#!/usr/bin/env python3
"""Measure this machine: each figure is a ratio against a named peer, taken in the same run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from megatron_huatuo.config import argument_parser, at_least
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.log import silence_known_warnings
from megatron_huatuo.storage.manifest import write_json

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ lies beside tools/, outside the package


@exit_on_error
def main() -> int:
    """Run one benchmark, print its table, and write its records."""
    silence_known_warnings()
    from benchmarks.settings import BENCHMARKS

    parser = argument_parser(__doc__ or "")
    commands = parser.add_subcommands(dest="benchmark")
    for name, settings in BENCHMARKS.items():
        command = argument_parser(settings.__doc__ or "")
        command.add_argument("--json", type=str | None, default=None, metavar="FILE", help="write the records here")
        command.add_class_arguments(settings)
        commands.add_subcommand(name, command, help=settings.__doc__)
    comparing = argument_parser(
        "What changed beyond noise between two records, or two commands run in turn; 1 if worse."
    )
    comparing.add_argument("before", type=str, metavar="A", help="file of --json, or a command")
    comparing.add_argument("after", type=str, metavar="B", help="the same of the newer state")
    comparing.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each command")
    commands.add_subcommand("compare", comparing, help=comparing.description)
    arguments = parser.parse_args()
    name, options = arguments.benchmark, vars(arguments[arguments.benchmark])
    at_least("repeats", options.get("repeats"), 1)
    if name == "compare":
        return _compare(**options)
    file = options.pop("json")
    records = importlib.import_module(f"benchmarks.{name}").run(BENCHMARKS[name](**options))
    print(f"{'figure':<72} {'ours':>12} {'peer':>12} {'ratio':>7}  unit")
    for record in records:
        ours, peer, ratio = (_number(record.get(key)) for key in ("ours", "peer", "ratio"))
        print(f"{record['name']:<72} {ours:>12} {peer:>12} {ratio:>7}  {record['unit']}")
    if file is not None:
        write_json(file, records)
    return 0


def _compare(before: str, after: str, repeats: int) -> int:
    from benchmarks.compare import compare_commands, compare_records, format_changes

    are_files = Path(before).is_file() and Path(after).is_file()
    changes = compare_records(before, after) if are_files else compare_commands(before, after, repeats)
    print(format_changes(changes))
    return int(any(change.verdict == "worse" for change in changes))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
