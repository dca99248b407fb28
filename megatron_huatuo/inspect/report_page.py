"""One self-contained HTML page about a run: it opens from disk, needs no network, prints well, and knows light and dark."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_huatuo import __version__
from megatron_huatuo.config import dump_yaml
from megatron_huatuo.inspect.report_charts import bar_chart, line_chart, mixture_chart, rate_chart
from megatron_huatuo.inspect.report_data import RunReport, gather_report
from megatron_huatuo.log import now
from megatron_huatuo.storage.atomic import atomic_write

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.55 system-ui, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
  max-width: 62rem; margin: 0 auto; padding: 1.5rem; background: Canvas; color: CanvasText; }
h1 { margin: 0 0 .2rem; } h2 { margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; white-space: pre-wrap; font-size: 12.5px; }
nav a { margin-right: 1rem; } svg { width: 100%; height: auto; } svg:focus, a:focus { outline: 2px solid Highlight; }
figure { margin: 0 0 1rem; } figcaption { font-weight: 600; }
.note { background: var(--soft); padding: .6rem .9rem; } .flow { display: flex; flex-wrap: wrap; gap: .4rem; }
.flow li { list-style: none; background: var(--soft); padding: .5rem .8rem; } .flow { padding: 0; } .flow b { display: block; }
@media print { body { max-width: none; padding: 0; } nav { display: none; } section { break-inside: avoid; } }
"""


def write_report(
    run_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    hf: str | os.PathLike[str] | None = None,
    evaluations: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the page; returns it. Works on a run that is not finished, or that nobody has examined.

    hf: the exported model, by default that of checkpoint.export_hf. evaluations: directories of exams and judgements.
    Raises: ConfigError when there is no run, or a directory holds no results.
    """
    report = gather_report(Path(run_dir), Path(hf) if hf else None, [Path(path) for path in evaluations])
    with atomic_write(output, "w") as handle:
        handle.write(page(report))
    return Path(output)


def page(report: RunReport) -> str:
    """The whole document."""
    sections = [(name, title, body) for name, title, body in _sections(report) if body]
    links = "".join(f'<a href="#{name}">{title}</a> ' for name, title, _ in sections)
    bodies = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{body}</section>\n'
        for name, title, body in sections
    )
    name = html.escape(report.run_dir.resolve().name)
    state = report.status.get("state", "unknown")
    reason = report.status.get("reason") or ""
    told = f"{state} at step {report.status.get('iteration', '?')}{': ' + reason if reason else ''}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Run {name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main>\n<h1>Run {name}</h1>\n<p>{html.escape(told)}. Written {now()} by "
        f"megatron_huatuo {__version__}.</p>\n"
        '<p class="note"><b>No medical advice.</b> A model that was trained here can be wrong, also when it sounds sure; '
        "its output needs a clinician before anyone acts on it.</p>\n"
        f'<nav aria-label="Sections">{links}</nav>\n{bodies}</main></body></html>\n'
    )


def _sections(report: RunReport) -> Iterable[tuple[str, str, str]]:
    yield "flow", "From raw documents to trained tokens", _flow(report)
    yield "mixture", "Mixture", _mixture(report)
    yield "rate", "Learning rate by source", _rates(report)
    yield "loss", "Loss and gradients", _losses(report)
    yield "speed", "Throughput", _speed(report)
    yield "events", "Starts, saves and stops", _table(("what", "when and how"), report.events)
    yield "parity", "Parity of the export", _table(("figure", "value"), [*report.model.items(), *report.parity.items()])
    yield "exams", "Exams", "".join(_exam(name, scores) for name, scores in report.exams)
    yield "judge", "Judgements", "".join(_judgement(name, scores) for name, scores in report.judgements)
    yield "repeat", "To repeat it", _repeat(report)
    yield "missing", "What could not be read", _table(("part",), [(text,) for text in report.missing])


def _flow(report: RunReport) -> str:
    items = [
        f"<li><b>{count:,}</b>{html.escape(stage)}<br><small>{html.escape(what)}</small></li>"
        for stage, count, what in report.flow
    ]
    return f'<ol class="flow">{" ".join(items)}</ol>' if items else ""


def _mixture(report: RunReport) -> str:
    charts = []
    if report.planned is not None and len(report.planned[0]) > 1:
        charts.append(mixture_chart("Planned mixture", report.sources, *report.planned))
    if report.trained_share:
        label = "share of the trained tokens"
        charts.append(line_chart("Mixture as trained", report.trained_share, "step", label, from_zero=True))
    return "".join(charts)


def _rates(report: RunReport) -> str:
    if report.rates is None:
        return ""
    peak = report.rates.peak_lr or 1.0
    rows = []
    for name, rate in zip(report.rates.names, report.rates.rates, strict=True):
        got = (report.received.get(name) or {}).get("mean_learning_rate")
        planned = rate.mean_over_tokens if rate.mean_over_tokens is not None else rate.mean_over_draws
        rows.append(
            (name, f"{planned:.3f}", f"{rate.share_below_tenth:.1%}", "-" if got is None else f"{got / peak:.3f}")
        )
    head = ("source", "planned, share of the peak", "draws below a tenth", "received until now")
    return rate_chart("Learning rate over the run", report.rates) + _table(head, rows)


def _losses(report: RunReport) -> str:
    charts = []
    for title, curves, label in (
        ("Training loss", report.losses, "loss"),
        ("Loss by source", report.losses_by_source, "loss"),
        ("Held-out loss", report.validation, "loss"),
        ("Gradient norm", report.grad_norm, "norm"),
    ):
        if curves:
            charts.append(line_chart(title, curves, "step", label))
    return "".join(charts)


def _speed(report: RunReport) -> str:
    if not report.throughput:
        return ""
    charts = [line_chart("Tokens per second and rank", report.throughput, "step", "tokens/s", from_zero=True)]
    if report.seconds:
        charts.append(bar_chart("Where the time of a step went", report.seconds, "s"))
    told = "unknown: the device has no entry in the table of peaks" if report.mfu is None else f"{report.mfu:.1%}"
    return "".join(charts) + f"<p>Model FLOPs utilisation: {told}.</p>"


def _exam(name: str, scores: Mapping[str, Any]) -> str:
    rows = [_score_row("all", scores)]
    for key in ("by_question_type", "by_source"):
        rows += [_score_row(part, counts) for part, counts in (scores.get(key) or {}).items()]
    head = ("part", "questions", "accuracy", "95 % interval", "chance", "unparsed")
    return f"<h3>{html.escape(name)}</h3>" + _table(head, rows)


def _score_row(part: str, counts: Mapping[str, Any]) -> tuple[str, ...]:
    interval = counts.get("interval")
    low_high = f"{interval[0]:.1%} to {interval[1]:.1%}" if isinstance(interval, list) else "-"
    chance = counts.get("chance")
    return (
        part,
        f"{counts.get('count', 0):,}",
        "-" if counts.get("accuracy") is None else f"{counts['accuracy']:.1%}",
        low_high,
        "-" if chance is None else f"{chance:.1%}",
        str(counts.get("unparsed", "-")),
    )


def _judgement(name: str, scores: Mapping[str, Any]) -> str:
    rows = [(key, str(value)) for key, value in scores.items() if not isinstance(value, (dict, list))]
    return f"<h3>{html.escape(name)}</h3>" + _table(("figure", "value"), rows)


def _repeat(report: RunReport) -> str:
    prints = _table(("fingerprint", "sha256"), report.fingerprints.items())
    command = f"torchrun --nproc_per_node N tools/train.py --config {report.run_dir}/config.yaml --run_dir NEW_DIR"
    settings = html.escape(dump_yaml(report.config))
    return f"{prints}<pre>{html.escape(command)}</pre><details><summary>All settings</summary><pre>{settings}</pre></details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    if not lines:
        return ""
    titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
