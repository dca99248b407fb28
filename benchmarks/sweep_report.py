"""The table and the picture of a sweep."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sweep_case import Outcome

_HEAD = "| case | ranks | rows per step | s per step | tokens/s/rank | planned | MFU | GiB | efficiency | outcome |"


def write_report(outcomes: list[Outcome], directory: Path, *, scaling: str | None) -> None:
    """Write `sweep.md`, the quickest case first (with scaling: the fewest ranks), and `sweep.png`."""
    ordered = sorted(outcomes, key=lambda one: one.case.ranks if scaling else -(one.tokens_per_s_per_rank or 0))
    lines = [_HEAD, "| --- " * _HEAD.count(" |") + "|", *(_line(one, efficiency(one, outcomes)) for one in ordered)]
    (directory / "sweep.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(ordered, directory / "sweep.png", scaling)


def efficiency(one: Outcome, outcomes: list[Outcome]) -> float | None:
    """Tokens/s/rank over that of the case with the fewest ranks that ran well; None where one is missing."""
    well = [other for other in outcomes if other.tokens_per_s_per_rank is not None]
    if not well or one.tokens_per_s_per_rank is None:
        return None
    first = min(well, key=lambda other: other.case.ranks)
    return one.tokens_per_s_per_rank / first.tokens_per_s_per_rank if first.tokens_per_s_per_rank else None


def _line(one: Outcome, share: float | None) -> str:
    case = one.case
    figures = [
        _shown(one.step_time_s, "{:.3g}"),
        _shown(one.tokens_per_s_per_rank, "{:,.0f}"),
        _shown(case.planned, "{:,.0f}"),
        _shown(one.mfu, "{:.1%}"),
        _shown(one.memory_gib, "{:.1f}"),
        _shown(share, "{:.0%}"),
    ]
    verdict = one.verdict.replace("|", "/")
    return (
        f"| {case.name} | {case.ranks} | {case.config.training.global_batch_size} | {' | '.join(figures)} | {verdict} |"
    )


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _draw(ordered: list[Outcome], path: Path, scaling: str | None) -> None:
    """Bars, one per case; with scaling tokens/s of all ranks over their number, beside the line of no loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4 if scaling else 1.2 + 0.4 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    well = [one for one in ordered if one.tokens_per_s_per_rank is not None]
    if scaling and well:
        ranks = [one.case.ranks for one in well]
        axes.plot(ranks, [one.case.ranks * (one.tokens_per_s_per_rank or 0) for one in well], "o-", label="measured")
        axes.plot(ranks, [number * (well[0].tokens_per_s_per_rank or 0) for number in ranks], "--", label="no loss")
        axes.set(xlabel="ranks", ylabel="tokens/s", title=f"{scaling} scaling", xticks=ranks)
        axes.legend()
    else:
        labels = [f"{one.case.name}{'' if one.verdict == 'ok' else f' ({one.verdict[:20]})'}" for one in ordered]
        places = range(len(ordered))
        axes.barh(places, [one.tokens_per_s_per_rank or 0 for one in ordered])
        axes.set_yticks(places, labels, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="tokens/s/rank")
    figure.savefig(path, dpi=120)
