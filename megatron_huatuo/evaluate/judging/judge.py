"""Pairwise judging of two models' answers, each pair in both orders, by one judge or several.

Invariant: a pair counts only with a readable verdict in both orders; what is missing is counted, never invented.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from megatron_huatuo.evaluate.answering.replies import output_directory
from megatron_huatuo.evaluate.generate import GeneratedReply, ModelEndpoint
from megatron_huatuo.evaluate.judging.answers import Answer, pair_answers
from megatron_huatuo.evaluate.judging.panel import JudgeSettings, Panel
from megatron_huatuo.evaluate.judging.preference import summarise_preference
from megatron_huatuo.evaluate.judging.verdict import judge_prompt, parse_verdict
from megatron_huatuo.evaluate.significance import cohen_kappa
from megatron_huatuo.storage.manifest import describe_input

_POINTS = {1: (10, 0), 2: (0, 10), 0: (5, 5)}


def run_judge(
    answers_a: str | os.PathLike[str],
    answers_b: str | os.PathLike[str],
    judge: ModelEndpoint | Sequence[ModelEndpoint],
    output: str | os.PathLike[str],
    settings: JudgeSettings | None = None,
) -> dict[str, Any]:
    """Have every pair of answers judged twice by each judge, and return the content of `scores.json`.

    answers_a, answers_b: files of `read_answers` with the same ids and questions.
    output: directory for `verdicts.jsonl`, `scores.json`, `manifest.json` and the request log; the same directory
        again asks, and pays, only for what is missing.
    Pairs whose requests were allowed to fail count as unreadable.
    Raises: DataError for the answers, ConfigError for the settings, EndpointError for the endpoint.
    """
    pairs = pair_answers(answers_a, answers_b)
    with output_directory(output) as directory:
        panel = Panel(judge, directory, settings or JudgeSettings())
        prompts = [prompt for a, b in pairs for prompt in (judge_prompt(a, b), judge_prompt(b, a))]
        replies = panel.ask(prompts, "judge")
        records = [
            _pair_record(name, a, b, replies[name][2 * index], replies[name][2 * index + 1])
            for name in panel.names
            for index, (a, b) in enumerate(pairs)
        ]
        scores = score_pairs(records)
        about = {
            "judge": panel.description[0] if len(panel.names) == 1 else panel.description,
            "answers_a": describe_input(answers_a),
            "answers_b": describe_input(answers_b),
        }
        panel.publish("judgement", "verdicts.jsonl", records, scores, about)
    return scores


def _pair_record(judge: str, a: Answer, b: Answer, a_first: GeneratedReply, b_first: GeneratedReply) -> dict[str, Any]:
    """A line of `verdicts.jsonl`: points of A and B in each order, their sums, the winner, and the lengths."""
    forward, backward = parse_verdict(a_first.text), parse_verdict(b_first.text)
    points_ab = None if forward is None else _POINTS[forward]
    points_ba = None if backward is None else _POINTS[backward][::-1]
    score_a = score_b = winner = None
    if points_ab is not None and points_ba is not None:
        score_a, score_b = points_ab[0] + points_ba[0], points_ab[1] + points_ba[1]
        winner = "tie" if score_a == score_b else "a" if score_a > score_b else "b"
    return {
        "id": a.id,
        "label": a.label,
        "score_a": score_a,
        "score_b": score_b,
        "winner": winner,
        "judge": judge,
        "length_a": a.length,
        "length_b": b.length,
        "a_first": {"points": points_ab, "reply": a_first.text, "finish_reason": a_first.finish_reason},
        "b_first": {"points": points_ba, "reply": b_first.text, "finish_reason": b_first.finish_reason},
    }


def score_pairs(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and biases over all records, under `by_label` for each kind of question, under `by_judge` for each judge.

    `agreement`: for every two judges Cohen's kappa of their winners over the pairs that both could decide on.
    """
    by_label: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    by_judge: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        by_label[record["label"] or "-"].append(record)
        by_judge[record["judge"]][record["id"]] = record
    scores = {
        **count_pairs(records),
        **summarise_preference(records),
        "by_label": {label: count_pairs(group) for label, group in by_label.items()},
    }
    if len(by_judge) > 1:
        scores["by_judge"] = {
            name: {**count_pairs(list(own.values())), **summarise_preference(list(own.values()))}
            for name, own in by_judge.items()
        }
        scores["agreement"] = [_agreement(one, other, by_judge) for one, other in itertools.combinations(by_judge, 2)]
    return scores


def _agreement(one: str, other: str, by_judge: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    winners = [
        (record["winner"], by_judge[other][identifier]["winner"]) for identifier, record in by_judge[one].items()
    ]
    told = [(x, y) for x, y in winners if x is not None and y is not None]
    return {
        "judges": [one, other],
        "pairs": len(told),
        "equal": sum(x == y for x, y in told) / len(told) if told else None,
        "kappa": cohen_kappa([x for x, _ in told], [y for _, y in told]),
    }


def count_pairs(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of one group of pairs.

    wins_a, wins_b, ties: by the points of both orders (10/0, 5/5 or 0/10 each) summed. score_a, score_b: sums of them.
    disagreements: pairs whose two orders give different points; reversals among them: each order prefers another
    answer, so the sum is 10/10. first_preferred, second_preferred: verdicts for the answer shown first, or second.
    unreadable: pairs without a readable verdict in both orders; they count nowhere else.
    """
    readable = [record for record in records if record["winner"] is not None]
    orders = [(record["a_first"]["points"], record["b_first"]["points"]) for record in readable]
    shown = [points for ab, ba in orders for points in (ab, ba[::-1])]
    winners = [record["winner"] for record in readable]
    return {
        "pairs": len(records),
        "wins_a": winners.count("a"),
        "ties": winners.count("tie"),
        "wins_b": winners.count("b"),
        "score_a": sum(record["score_a"] for record in readable),
        "score_b": sum(record["score_b"] for record in readable),
        "disagreements": sum(tuple(ab) != tuple(ba) for ab, ba in orders),
        "reversals": sum({tuple(ab), tuple(ba)} == {(10, 0), (0, 10)} for ab, ba in orders),
        "first_preferred": sum(tuple(points) == (10, 0) for points in shown),
        "second_preferred": sum(tuple(points) == (0, 10) for points in shown),
        "unreadable": len(records) - len(readable),
    }


def format_judgement(scores: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    lines = [
        f"A wins {scores['wins_a']}, ties {scores['ties']}, B wins {scores['wins_b']} of {scores['pairs']} pairs"
        f" ({scores['unreadable']} without a readable verdict)",
        f"points: A {scores['score_a']}, B {scores['score_b']}",
        f"orders disagree on {scores['disagreements']} pairs ({scores['reversals']} reversals); "
        f"the answer shown first was preferred {scores['first_preferred']} times, "
        f"the second {scores['second_preferred']} times",
    ]
    if "win_rate_a" in scores:
        lines += [f"{text}: {_share(scores, key)}" for key, text in _RATES.items() if key in scores]
        low, high = scores["odds_ratio_if_twice_as_long_interval"]
        lines.append(
            f"odds ratio of an answer twice as long: {scores['odds_ratio_if_twice_as_long']:.2f} ({low:.2f} to {high:.2f})"
        )
    for agreement in scores.get("agreement", ()):
        kappa = "undefined" if agreement["kappa"] is None else f"{agreement['kappa']:.2f}"
        lines.append(f"agreement of {' and '.join(agreement['judges'])}: kappa {kappa} over {agreement['pairs']} pairs")
    return "\n".join(lines)


_RATES = {
    "win_rate_a": "win rate of A, ties half",
    "rate_at_equal_length": "win rate of A at equal length",
    "longer_preferred": "the longer answer wins",
    "position_bias": "the answer shown first is preferred",
}


def _share(scores: dict[str, Any], key: str) -> str:
    low, high = scores[f"{key}_interval"]
    return f"{100 * scores[key]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
