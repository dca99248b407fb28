"""What an output has cost, over all runs: requests, tokens, money, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from megatron_huatuo.unify.model import ModelOptions
from megatron_huatuo.unify.request_log import RequestLog, Totals, fold_logs, known_log


def read_totals(requests: Path) -> tuple[list[Totals], dict[str, int]]:
    """(sums by model, failed tries by reason) of all runs. Raises DataError while a task is writing its log."""
    fold_logs(requests)
    with closing(RequestLog(known_log(requests))) as log:
        return log.sums()


def spent_usd(options: ModelOptions, totals: Iterable[Totals]) -> float:
    """Money of all runs; models without a price count nothing."""
    prices = options.prices or {}
    return sum(
        prices[row.model].cost_usd(row.prompt_tokens, row.completion_tokens) for row in totals if row.model in prices
    )


def ledger(options: ModelOptions, requests: Path, usages: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """The content of `ledger.json`. usages: of the tasks that made the present output."""
    totals, failures = read_totals(requests)
    this_run: Counter[str] = sum((Counter(usage) for usage in usages), Counter())
    return {
        "requests": sum(row.replies for row in totals),
        "prompt_tokens": sum(row.prompt_tokens for row in totals),
        "completion_tokens": sum(row.completion_tokens for row in totals),
        "cost_usd": spent_usd(options, totals) if options.prices else None,
        "replies_with_estimated_tokens": sum(row.uncounted for row in totals),
        "requests_without_reply": sum(row.unanswered for row in totals),
        "failed_tries": failures,
        "by_model": {row.model: row._asdict() for row in totals},
        "prices": {model: vars(price) for model, price in sorted((options.prices or {}).items())},
        "budget_usd": options.budget_usd,
        "this_run": {
            **{name: int(this_run[name]) for name in ("requests", "retries", "replies_from_log")},
            "task_time_s": round(this_run["task_time_s"], 3),
        },
    }
