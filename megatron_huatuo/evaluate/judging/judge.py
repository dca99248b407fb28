"""Pairwise judging of two models' answers by a third one, each pair in both orders.

Invariant: a pair counts only with a readable verdict in both orders; what is missing is counted, never invented.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from megatron_huatuo.evaluate.answering.replies import (
    check_failed,
    collect_replies,
    is_failed,
    open_generator,
    output_directory,
)
from megatron_huatuo.evaluate.generate import GeneratedReply, GenerationSettings, ModelEndpoint, Request
from megatron_huatuo.evaluate.judging.answers import Answer, pair_answers
from megatron_huatuo.evaluate.judging.verdict import judge_prompt, parse_verdict
from megatron_huatuo.storage.jsonl import write_jsonl
from megatron_huatuo.storage.manifest import MANIFEST_NAME, sha256_file, write_json, write_manifest

_POINTS = {1: (10, 0), 2: (0, 10), 0: (5, 5)}


def run_judge(
    *,
    answers_a: str | os.PathLike[str],
    answers_b: str | os.PathLike[str],
    judge: ModelEndpoint,
    output: str | os.PathLike[str],
    generation: GenerationSettings | None = None,
    max_failed: int = 0,
) -> dict[str, Any]:
    """Have every pair of answers judged twice, and return the content of `scores.json`.

    answers_a, answers_b: files of `read_answers` with the same ids and questions.
    output: directory for `verdicts.jsonl`, `scores.json`, `manifest.json` and the request log; the same directory
        again asks, and pays, only for what is missing.
    max_failed: requests that may stay without a reply; their pairs count as unreadable.
    Raises: DataError for the answers, ConfigError for the settings, EndpointError for the endpoint.
    """
    pairs = pair_answers(answers_a, answers_b)
    with output_directory(output) as directory:
        generator = open_generator(judge, directory, generation or GenerationSettings(max_new_tokens=1024))
        requests = [Request(prompt) for a, b in pairs for prompt in _both_orders(a, b)]
        replies = collect_replies(generator, requests, description="judge")
        check_failed(requests, replies, max_failed)
        records = [_pair_record(a, b, replies[2 * index], replies[2 * index + 1]) for index, (a, b) in enumerate(pairs)]
        scores = score_pairs(records)
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        write_jsonl(directory / "verdicts.jsonl", records)
        write_json(directory / "scores.json", scores)
        content = {
            "judge": generator.description,
            "answers_a": {"file": os.fspath(answers_a), "sha256": sha256_file(answers_a)},
            "answers_b": {"file": os.fspath(answers_b), "sha256": sha256_file(answers_b)},
            "failed": sum(map(is_failed, replies)),
        }
        write_manifest(directory, "judgement", content, ["verdicts.jsonl", "scores.json"])
    return scores


def _both_orders(a: Answer, b: Answer) -> tuple[str, str]:
    return judge_prompt(a.question, a.text, b.text), judge_prompt(a.question, b.text, a.text)


def _pair_record(a: Answer, b: Answer, a_first: GeneratedReply, b_first: GeneratedReply) -> dict[str, Any]:
    """A line of `verdicts.jsonl`: points of A and B in each order, their sums, and the winner."""
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
        "a_first": {"points": points_ab, "reply": a_first.text, "finish_reason": a_first.finish_reason},
        "b_first": {"points": points_ba, "reply": b_first.text, "finish_reason": b_first.finish_reason},
    }


def score_pairs(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The counts of `count_pairs` over all records, and under `by_label` for each kind of question."""
    by_label: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_label[record["label"] or "-"].append(record)
    return {**count_pairs(records), "by_label": {label: count_pairs(group) for label, group in by_label.items()}}


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
    return (
        f"A wins {scores['wins_a']}, ties {scores['ties']}, B wins {scores['wins_b']} of {scores['pairs']} pairs"
        f" ({scores['unreadable']} without a readable verdict)\n"
        f"points: A {scores['score_a']}, B {scores['score_b']}\n"
        f"orders disagree on {scores['disagreements']} pairs ({scores['reversals']} reversals); "
        f"the answer shown first was preferred {scores['first_preferred']} times, "
        f"the second {scores['second_preferred']} times"
    )
