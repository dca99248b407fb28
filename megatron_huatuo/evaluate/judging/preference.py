"""What a set of pairwise verdicts says: who wins, how sure that is, and how much order and length decided.

Invariant: everything is computed from both orders of a pair together, except the position bias, which compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from megatron_huatuo.evaluate.significance import interval_of_mean, wilson_interval

_RIDGE = 0.05  # keeps the slope finite when length alone decides every pair
_STEPS = 30


class LengthEffect(NamedTuple):
    """Fit of: log odds that A wins = skill + slope · ln(length of A / length of B). Each with its 95 % interval.

    rate_at_equal_length: of A, without the help of length. odds_ratio_if_twice_as_long: 1 for a judge whom length leaves cold.
    """

    rate_at_equal_length: float
    rate_at_equal_length_interval: list[float]
    odds_ratio_if_twice_as_long: float
    odds_ratio_if_twice_as_long_interval: list[float]


def summarise_preference(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rates and biases of the readable records of `verdicts.jsonl`; empty without any.

    win_rate_a: mean of A's share of the points, ties half. longer_preferred: share of the decided pairs of unlike lengths
    that the longer answer wins. position_bias: share of the single verdicts, ties left out, for the answer shown first.
    """
    readable = [pair for pair in pairs if pair["winner"] is not None]
    if not readable:
        return {}
    shares = [pair["score_a"] / (pair["score_a"] + pair["score_b"]) for pair in readable]
    summary: dict[str, Any] = {
        "win_rate_a": float(np.mean(shares)),
        "win_rate_a_interval": list(interval_of_mean(shares)),
    }
    decided = [pair for pair in readable if pair["winner"] != "tie" and pair["length_a"] != pair["length_b"]]
    if decided:
        longer = sum((pair["winner"] == "a") == (pair["length_a"] > pair["length_b"]) for pair in decided)
        summary |= {
            "longer_preferred": longer / len(decided),
            "longer_preferred_interval": list(wilson_interval(longer, len(decided))),
            "longer_decided": len(decided),
        }
    verdicts = [points for pair in readable for points in (pair["a_first"]["points"], pair["b_first"]["points"][::-1])]
    first = sum(tuple(points) == (10, 0) for points in verdicts)
    told = first + sum(tuple(points) == (0, 10) for points in verdicts)
    if told:
        summary |= {"position_bias": first / told, "position_bias_interval": list(wilson_interval(first, told))}
    lengths = [(max(1, pair["length_a"]), max(1, pair["length_b"])) for pair in readable]
    summary |= fit_length_effect(shares, lengths)._asdict()
    return summary


def fit_length_effect(shares: Sequence[float], lengths: Sequence[tuple[int, int]]) -> LengthEffect:
    """Logistic fit of A's shares of the points on the logarithm of the lengths' ratio, by Newton's method.

    shares: in [0, 1], one for each pair. lengths: (A's, B's), both above 0. A weak ridge keeps the fit finite; intervals come
    from the curvature at the fit, which is flat, so that they are wide, where length alone decides every pair.
    """
    share, length = np.asarray(shares, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    inputs = np.column_stack([np.ones(len(share)), np.log(length[:, 0] / length[:, 1])])
    fit = np.zeros(2)
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(-(inputs @ fit)))
        curvature = (inputs * (expected * (1 - expected))[:, None]).T @ inputs + _RIDGE * np.eye(2)
        fit += np.clip(np.linalg.solve(curvature, inputs.T @ (share - expected) - _RIDGE * fit), -2, 2)
    spread = 1.96 * np.sqrt(np.diag(np.linalg.inv(curvature)))
    skills = [float(1 / (1 + np.exp(-value))) for value in (fit[0], fit[0] - spread[0], fit[0] + spread[0])]
    odds = [float(2 ** np.clip(value, -99, 99)) for value in (fit[1], fit[1] - spread[1], fit[1] + spread[1])]
    return LengthEffect(skills[0], skills[1:], odds[0], odds[1:])
