"""The plan against published runs of other systems: prediction, error, and the fit of the plan's few constants.

    python -m benchmarks.published                 # the table, and the errors of both halves
    python -m benchmarks.published --fit           # constants that fit the first half best, to be put into plan/efficiency.py
    python -m benchmarks.published --leave-out     # errors of each source when the constants are fitted without it
    python -m benchmarks.published --write FILE    # the table between the markers of docs/performance.md

Rows lie in docs/published_runs.yaml. Configurations alternate between the halves in the order of that file: the first is
used to fit, the second only to test. Rows that differ in nothing but the number of GPUs and the global batch are one
configuration, so that a run's larger twin cannot stand on the other side.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_huatuo.config import read_yaml
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_preset
from megatron_huatuo.plan.efficiency import RANGES, Constants
from megatron_huatuo.plan.gpus import get_gpu
from megatron_huatuo.plan.links import Links
from megatron_huatuo.plan.step_time import step_time
from megatron_huatuo.plan.workload import Workload

ROWS = Path(__file__).resolve().parent.parent / "docs" / "published_runs.yaml"


@dataclass(frozen=True)
class PublishedRun:
    """One published figure, and what the time model needs to predict it."""

    content: dict[str, Any]
    architecture: Architecture
    half: str
    """fit or test."""

    @property
    def measured(self) -> float:
        """Published tokens/s of one GPU."""
        return float(self.content["tokens_per_s_per_gpu"])

    def workload(self) -> Workload:
        """The run as the time model sees it."""
        row = self.content
        sizes = ("tensor_parallel", "pipeline_parallel", "chunks", "context_parallel", "sharded_over")
        divisions = {name: row.get(name, 1) for name in sizes}
        ranks = divisions["tensor_parallel"] * divisions["pipeline_parallel"] * divisions["context_parallel"]
        data_parallel = row["gpus"] // ranks
        recomputed = float(row.get("recomputed_layers", 0))
        return Workload(
            architecture=self.architecture,
            seq_length=row["seq_length"],
            micro_batch_size=row["micro_batch_size"],
            num_microbatches=row["global_batch_size"] // (row["micro_batch_size"] * data_parallel),
            data_parallel=data_parallel,
            attended_length=float(row.get("document_tokens", row["seq_length"])),
            tp_comm_overlap=divisions["tensor_parallel"] > 1,
            precision=row.get("precision", "bf16"),
            recomputed=("layer",) if recomputed else (),
            recomputed_layers=recomputed,
            gradient_bytes=row.get("gradient_bytes", 4),
            fused=row.get("fused", True),
            **divisions,
        )

    def predicted(self, constants: Constants | None = None) -> float:
        """Predicted tokens/s of one GPU."""
        constants = constants or Constants()
        gpu, work = get_gpu(self.content["gpu"]), self.workload()
        network = self.content["network_gb_per_s"] * 1e9
        links = Links.of(gpu, network, self.content.get("gpus_per_node", 8), constants)
        return work.tokens_per_step / step_time(work, gpu, links, constants).total / self.content["gpus"]

    def error(self, constants: Constants | None = None) -> float:
        """Predicted over published, less one."""
        return self.predicted(constants) / self.measured - 1

    @property
    def layout(self) -> str:
        """Layout in words."""
        row = self.content
        names = {"tensor_parallel": "TP", "pipeline_parallel": "PP", "chunks": "VP", "context_parallel": "CP"}
        words = [f"{short}{row[name]}" for name, short in names.items() if name in row]
        if "sharded_over" in row and row["sharded_over"] > 1:
            words.append(f"{'HSDP' if row['sharded_over'] < row['gpus'] else 'FSDP'}{row['sharded_over']}")
        words.append(f"mb{row['micro_batch_size']}")
        if row.get("recomputed_layers"):
            share = row["recomputed_layers"]
            words.append("recomputed" if share == 1 else f"{share:.0%} recomputed")
        if not row.get("fused", True):
            words.append("plain PyTorch")
        if "document_tokens" in row:
            words.append(f"documents of {row['document_tokens']}")
        return " ".join(words)


def load_runs(path: Path = ROWS) -> list[PublishedRun]:
    """All rows that are compared, with their halves."""
    content = read_yaml(path)
    architectures = {name: _architecture(**sizes) for name, sizes in content["models"].items()}
    configurations: list[dict[str, Any]] = []
    runs = []
    for row in content["compared"]:
        sizes = ("gpus", "global_batch_size", "tokens_per_s_per_gpu", "sharded_over")
        configuration = {key: value for key, value in row.items() if key not in sizes}
        if configuration not in configurations:
            configurations.append(configuration)
        half = "test" if configurations.index(configuration) % 2 else "fit"
        runs.append(PublishedRun(row, architectures[row["model"]], half))
    return runs


def _architecture(*, layers: int, hidden: int, ffn: int, heads: int, groups: int, vocab: int) -> Architecture:
    return dataclasses.replace(
        get_preset("llama-2-7b"),
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=hidden // heads,
        vocab_size=vocab,
    )


def error_summary(runs: Sequence[PublishedRun], constants: Constants | None = None) -> tuple[float, float]:
    """(median, largest) absolute error."""
    errors = [abs(run.error(constants)) for run in runs]
    return statistics.median(errors), max(errors)


def fit(runs: Sequence[PublishedRun]) -> Constants:
    """Constants within their ranges that minimise the squared logarithms of predicted over published, rounded.

    From the middle of the ranges, each in turn is moved up and down by a step that is halved when nothing helps: the same
    result every time, whatever stands in efficiency.py.
    """
    best = dataclasses.replace(Constants(), **{name: (low + high) / 2 for name, (low, high) in RANGES.items()})
    lowest = _squares(runs, best)
    step = 0.1
    while step > 0.004:
        improved = False
        for name, (low, high) in RANGES.items():
            for factor in (1 + step, 1 / (1 + step)):
                value = min(high, max(low, getattr(best, name) * factor))
                candidate = dataclasses.replace(best, **{name: value})
                squares = _squares(runs, candidate)
                if squares < lowest - 1e-12:
                    best, lowest, improved = candidate, squares, True
        if not improved:
            step /= 2
    return dataclasses.replace(best, **{name: round(getattr(best, name), 2) for name in RANGES})


def _squares(runs: Sequence[PublishedRun], constants: Constants) -> float:
    return sum(math.log1p(run.error(constants)) ** 2 for run in runs)


def format_runs(runs: Sequence[PublishedRun]) -> str:
    """The comparison as Markdown: errors of the halves, then every row, then what is not compared and why."""
    content = read_yaml(ROWS)
    lines = []
    for half in ("fit", "test"):
        chosen = [run for run in runs if run.half == half]
        median, worst = error_summary(chosen)
        use = "used to fit" if half == "fit" else "only tested"
        lines.append(f"* {len(chosen)} rows {use}: median error {median:.1%}, worst {worst:.1%}")
    lines += ["", "| source | model | GPUs | sequence | layout | published | planned | error | half |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in runs:
        row = run.content
        precision = "" if row.get("precision", "bf16") == "bf16" else " fp8"
        cells = [
            row["source"],
            row["model"],
            f"{row['gpus']} × {row['gpu']}{precision}",
            f"{row['seq_length']:,}",
            run.layout,
            f"{run.measured:,.0f}",
            f"{run.predicted():,.0f}",
            f"{run.error():+.1%}",
            run.half,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "What is known of each source:", ""]
    lines += [
        f"* **{name}**: [{source['title']}]({source['address']}): {source['known']}"
        for name, source in content["sources"].items()
    ]
    lines += ["", "Figures that are quoted and decide nothing here:", ""]
    lines += [f"* {entry['what']}: {entry['why']}" for entry in content["not_compared"]]
    return "\n".join(lines)


def write_between_markers(path: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- NAME: begin --> and <!-- NAME: end --> in a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, ends, after = rest.partition(end)
    if not found or not ends:
        raise ConfigError(f"document has no place for the table: need {begin} and {end} ({path}). Add them.")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> int:
    """Print or write the comparison, or fit the constants."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="print the constants that fit the first half best")
    parser.add_argument(
        "--leave-out", action="store_true", help="print each source's errors by a fit to all other sources"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this document")
    options = parser.parse_args()
    runs = load_runs()
    if options.fit:
        constants = fit([run for run in runs if run.half == "fit"])
        for name in RANGES:
            print(f"{name}: {getattr(constants, name):.2f} (now {getattr(Constants(), name):.2f})")
        for half in ("fit", "test"):
            median, worst = error_summary([run for run in runs if run.half == half], constants)
            print(f"{half}: median {median:.1%}, worst {worst:.1%}")
        return 0
    if options.leave_out:
        for source in sorted({run.content["source"] for run in runs}):
            constants = fit([run for run in runs if run.content["source"] != source])
            left_out = [run for run in runs if run.content["source"] == source]
            median, worst = error_summary(left_out, constants)
            print(f"{source}: {len(left_out)} rows, median {median:.1%}, worst {worst:.1%}")
        return 0
    text = format_runs(runs)
    print(text)
    if options.write is not None:
        write_between_markers(options.write, "published runs", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
