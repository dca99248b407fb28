#!/usr/bin/env python3
"""Measure this machine: each figure is a ratio against a named peer, taken in the same run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.log import silence_known_warnings
from megatron_huatuo.storage.manifest import write_json

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ lies beside tools/, outside the package

BENCHMARKS = {
    "blend": "priority order, packing and blend building",
    "unify": "passages to pairs through an endpoint that answers at once",
    "index": "tokenising conversations into an index",
    "loader": "rows of a blend to batches",
    "convert": "Hugging Face directories to checkpoints and back",
    "train": "training steps",
    "start": "the first step of a run over millions of documents",
    "save": "the stall of a save that is written in the background",
}


@exit_on_error
def main() -> int:
    """Run one benchmark, print its table, and write its records."""
    silence_known_warnings()
    parser = argument_parser(__doc__ or "")
    commands = parser.add_subcommands(dest="benchmark")
    chosen = next((word for word in sys.argv[1:] if word in BENCHMARKS), None)
    for name, what in BENCHMARKS.items():
        run = _signature(name) if name == chosen else None
        command = argument_parser(f"Benchmark: {what}. {(run.__doc__ or '') if run else ''}")
        command.add_argument("--json", type=str | None, default=None, metavar="FILE", help="write the records here")
        for option in inspect.signature(run).parameters.values() if run else ():
            command.add_argument(f"--{option.name}", type=option.annotation, default=option.default)
        commands.add_subcommand(name, command, help=what)
    options = vars(parser.parse_args()[chosen]) if chosen else vars(parser.parse_args())
    file = options.pop("json")
    records = importlib.import_module(f"benchmarks.{chosen}").run(**options)
    print(f"{'figure':<72} {'ours':>12} {'peer':>12} {'ratio':>7}  unit")
    for record in records:
        ours, peer, ratio = (_number(record.get(key)) for key in ("ours", "peer", "ratio"))
        print(f"{record['name']:<72} {ours:>12} {peer:>12} {ratio:>7}  {record['unit']}")
    if file is not None:
        write_json(file, records)
    return 0


def _signature(name: str) -> Callable[..., Any]:
    """`run` of a benchmark without its body: importing the module would load torch for seconds before any --help."""
    spec = importlib.util.find_spec(f"benchmarks.{name}")
    assert spec is not None and spec.origin is not None
    module = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    run = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    run.body = run.body[:1]  # the docstring
    found: dict[str, Any] = {"Any": Any}
    exec(compile(ast.Module([run], []), spec.origin, "exec", dont_inherit=True), found)
    return found["run"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
