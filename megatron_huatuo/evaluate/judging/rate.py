"""Ratings of 1 to 10 by a rubric: each answer by each judge, each criterion and overall, with the judges' agreement.

Invariant: a rating counts only when it is a number on the rubric's scale; anything else is unreadable, and counted.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_huatuo.config import at_least, read_yaml
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answering.replies import output_directory
from megatron_huatuo.evaluate.generate import ModelEndpoint
from megatron_huatuo.evaluate.judging.answers import Answer, read_answers
from megatron_huatuo.evaluate.judging.panel import JudgeSettings, Panel
from megatron_huatuo.evaluate.significance import cohen_kappa, interval_of_mean, weighted_kappa
from megatron_huatuo.llm.thoughts import peel_reply
from megatron_huatuo.storage.manifest import describe_input, fingerprint

_BUNDLED = Path(__file__).with_name("rubrics")
AUTO_RUBRIC = "auto"
_OVERALL = {"zh": "总分", "en": "Overall"}
_FRAME = {"zh": ("对话", "对话结束"), "en": ("Conversation", "End of conversation")}
_FORM = {
    "zh": "请先简要说明理由。然后每个标准单独一行，写成“名称：分数”，分数是{lowest}到{highest}的整数。最后一行只写总分，写成 [[总分：分数]]。",
    "en": "First give your reasons briefly. Then write one line for each criterion as 'Name: score', a whole number from {lowest} to "
    "{highest}. Write in the last line only the overall score as [[Overall: score]].",
}


@dataclass(frozen=True)
class Rubric:
    """How answers are rated. criteria: {name: description}. path: its file."""

    language: str
    instruction: str
    criteria: dict[str, str]
    lowest: int
    highest: int
    path: Path

    def prompt(self, answer: Answer) -> str:
        """What a judge is asked about one answer, its whole conversation shown."""
        start, end = _FRAME[self.language]
        marks = [
            f"- {name}：{text}" if self.language == "zh" else f"- {name}: {text}"
            for name, text in self.criteria.items()
        ]
        form = _FORM[self.language].format(lowest=self.lowest, highest=self.highest)
        return "\n".join(
            [f"[{start}]", answer.transcript(), f"[{end}]", "", self.instruction.strip(), *marks, "", form]
        )

    def read(self, reply: str) -> dict[str, int | None]:
        """{criterion: rating, "overall": rating}; None for what the reply does not rate on the scale. The last one counts."""
        text, problem = peel_reply(reply)
        text = "" if problem and not text else re.sub(r"[*`_|]", " ", text)
        names = {name: [name] for name in self.criteria} | {
            "overall": [_OVERALL[self.language], "总分", "overall", "综合评分"]
        }
        return {key: self._last(text, words) for key, words in names.items()}

    def _last(self, text: str, words: Sequence[str]) -> int | None:
        pattern = "|".join(map(re.escape, words))
        found = re.findall(
            rf"(?:{pattern})\s*(?:得分|评分|分数|score|rating)?\s*[:：=]\s*([\d.]+)(?:\s*[/／]\s*(\d+))?",
            text,
            re.IGNORECASE,
        )
        if not found:
            return None
        value, of = found[-1]
        if not re.fullmatch(r"\d+", value.rstrip(".")) or (of and int(of) != self.highest):
            return None
        rating = int(value.rstrip("."))
        return rating if self.lowest <= rating <= self.highest else None


def read_rubric(name: str) -> Rubric:
    """A bundled rubric ("zh", "en") or one of a YAML file. Raises: ConfigError naming file and key."""
    path = _BUNDLED / f"{name}.yaml" if name in ("zh", "en") else Path(name)
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"wrong rubric: got {type(content).__name__}, need a mapping ({path}).")
    known = ("language", "lowest", "highest", "instruction", "criteria")
    for key in content.keys() ^ set(known):
        what = "unknown key" if key in content else "missing key"
        raise ConfigError(f"{what} {key!r} in the rubric: need {', '.join(known)} ({path}).")
    criteria = content["criteria"]
    if (
        not isinstance(criteria, list)
        or not criteria
        or not all(isinstance(entry, dict) and {"name", "description"} == entry.keys() for entry in criteria)
    ):
        raise ConfigError(f"wrong value of 'criteria' in the rubric: need a list of name and description ({path}).")
    if content["language"] not in _FORM:
        raise ConfigError(f"wrong language of the rubric: got {content['language']!r}, need zh or en ({path}).")
    at_least("lowest of the rubric", content["lowest"], 0)
    at_least("highest of the rubric", content["highest"], content["lowest"] + 1)
    named = {str(entry["name"]): str(entry["description"]) for entry in criteria}
    return Rubric(content["language"], str(content["instruction"]), named, content["lowest"], content["highest"], path)


def run_rate(
    answers: str | os.PathLike[str],
    judges: ModelEndpoint | Sequence[ModelEndpoint],
    output: str | os.PathLike[str],
    settings: JudgeSettings | None = None,
    rubric: str = AUTO_RUBRIC,
) -> dict[str, Any]:
    """Have every answer rated by every judge, and return the content of `scores.json`.

    answers: a file of `read_answers`, conversations included.
    rubric: "zh", "en", a YAML file, or "auto": the bundled one in the language of each question.
    output: directory for `ratings.jsonl`, `scores.json`, `manifest.json` and the request log; the same directory again asks,
        and pays, only for what is missing.
    Raises: DataError for the answers, ConfigError for rubric and settings, EndpointError for a judge.
    """
    read = list(read_answers(answers).values())
    rubrics = {name: read_rubric(name) for name in (("zh", "en") if rubric == AUTO_RUBRIC else (rubric,))}
    chosen = [rubrics[answer.language if rubric == AUTO_RUBRIC else rubric] for answer in read]
    with output_directory(output) as directory:
        panel = Panel(judges, directory, settings or JudgeSettings())
        replies = panel.ask([used.prompt(a) for used, a in zip(chosen, read, strict=True)], "rate")
        records = [
            {
                "id": answer.id,
                "label": answer.label,
                "length": answer.length,
                "turns": answer.num_answers,
                "ratings": {name: used.read(replies[name][index].text) for name in panel.names},
                "replies": {name: replies[name][index].text for name in panel.names},
            }
            for index, (answer, used) in enumerate(zip(read, chosen, strict=True))
        ]
        scores = score_ratings(records)
        about = {
            "judges": panel.description,
            "answers": describe_input(answers),
            "rubrics": {used.path.name: fingerprint(used.prompt(read[0])) for used in rubrics.values()},
        }
        panel.publish("ratings", "ratings.jsonl", records, scores, about)
    return scores


def score_ratings(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means with bootstrap intervals, over all judges and under `by_judge`, `by_criterion` and `by_label`.

    An answer's rating is the mean over the judges that rated it. `length_correlation`: Spearman's, of ratings and answer
    lengths. `agreement`: for every two judges quadratic-weighted and plain kappa of the overall ratings.
    """
    names = list(records[0]["ratings"])
    overall = [_mean(r["ratings"][name]["overall"] for name in names) for r in records]
    criteria = list(
        dict.fromkeys(key for r in records for rated in r["ratings"].values() for key in rated if key != "overall")
    )
    by_label: defaultdict[str, list[float | None]] = defaultdict(list)
    for record, rating in zip(records, overall, strict=True):
        by_label[record["label"] or "-"].append(rating)
    return {
        "answers": len(records),
        **_summary(overall),
        "length_correlation": _spearman(overall, [record["length"] for record in records]),
        "by_criterion": {
            key: _summary([_mean(rated.get(key) for rated in r["ratings"].values()) for r in records])
            for key in criteria
        },
        "by_label": {label: _summary(ratings) for label, ratings in by_label.items()},
        "by_judge": {name: _summary([r["ratings"][name]["overall"] for r in records]) for name in names},
        "agreement": [_agreement(one, other, records) for one, other in itertools.combinations(names, 2)],
    }


def _mean(ratings: Any) -> float | None:
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else None


def _summary(ratings: Sequence[float | None]) -> dict[str, Any]:
    known = [float(rating) for rating in ratings if rating is not None]
    return {
        "mean": sum(known) / len(known) if known else None,
        "interval": list(interval_of_mean(known)) if known else None,
        "rated": len(known),
        "unreadable": len(ratings) - len(known),
    }


def _spearman(ratings: Sequence[float | None], lengths: Sequence[int]) -> float | None:
    known = [(rating, length) for rating, length in zip(ratings, lengths, strict=True) if rating is not None]
    if len({rating for rating, _ in known}) < 2 or len({length for _, length in known}) < 2:
        return None
    ranks = [_ranks(np.asarray(column, dtype=np.float64)) for column in zip(*known, strict=True)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: np.ndarray = np.cumsum(counts) - (counts + 1) / 2
    return means[inverse]


def _agreement(one: str, other: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rated = [(r["ratings"][one]["overall"], r["ratings"][other]["overall"]) for r in records]
    known = [(x, y) for x, y in rated if x is not None and y is not None]
    first, second = [x for x, _ in known], [y for _, y in known]
    return {
        "judges": [one, other],
        "answers": len(known),
        "weighted_kappa": weighted_kappa(first, second),
        "kappa": cohen_kappa(first, second),
        "mean_difference": float(np.mean(np.subtract(first, second))) if known else None,
    }


def format_ratings(scores: dict[str, Any]) -> str:
    """The ratings as lines for a terminal."""
    lines = [f"overall: {_line(scores)}"]
    lines += [f"{key}: {_line(summary)}" for key, summary in scores["by_criterion"].items()]
    if len(scores["by_judge"]) > 1:
        lines += [f"by {name}: {_line(summary)}" for name, summary in scores["by_judge"].items()]
    if scores["length_correlation"] is not None:
        lines.append(f"rank correlation of rating and length: {scores['length_correlation']:.2f}")
    for agreement in scores["agreement"]:
        kappa = "undefined" if agreement["weighted_kappa"] is None else f"{agreement['weighted_kappa']:.2f}"
        lines.append(
            f"agreement of {' and '.join(agreement['judges'])}: weighted kappa {kappa} over {agreement['answers']} answers"
        )
    return "\n".join(lines)


def _line(summary: dict[str, Any]) -> str:
    if summary["mean"] is None:
        return f"none readable of {summary['unreadable']}"
    low, high = summary["interval"]
    return (
        f"{summary['mean']:.2f} ({low:.2f} to {high:.2f}), {summary['rated']} rated, {summary['unreadable']} unreadable"
    )
