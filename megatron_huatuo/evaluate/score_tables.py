"""The two tables of HuatuoGPT-II's paper, filled from result directories, with the published rows beside ours.

Invariant: a published number stands here only with the place where it can be looked up, and is marked as published; a cell
without a finished exam is empty, and a mean is given only where nothing is missing from it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_huatuo.config import one_of
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.evaluate.result_directory import read_result
from megatron_huatuo.evaluate.score import format_table, percent, score_replies
from megatron_huatuo.evaluate.significance import interval_of_mean_share
from megatron_huatuo.exams.exam_formats import exam_format
from megatron_huatuo.exams.pharmacist import QUESTION_TYPES, TRACKS
from megatron_huatuo.storage.atomic import atomic_write

_Records = list[Mapping[str, Any]]
BENCHMARKS = ("medqa", "medmcqa", "cmb", "cmexam", "cmmlu", "ceval")
PUBLISHED_SOURCE = "FreedomIntelligence/HuatuoGPT-II at 88ddf9a, assets/res1.png"
# Rows of that picture: four question types and the total of the pharmacy track, the same of the TCM track, the mean of both.
PUBLISHED_PHARMACIST: Mapping[str, tuple[float, ...]] = {
    "DISC-MedLLM": (22.2, 26.8, 23.3, 0.0, 22.6, 24.4, 32.3, 15.0, 0.0, 24.9, 23.8),
    "HuatuoGPT": (25.6, 25.5, 23.3, 2.6, 23.4, 24.1, 26.8, 31.6, 7.5, 24.9, 24.2),
    "ChatGLM2-6B": (37.0, 36.8, 25.0, 31.7, 35.3, 33.1, 37.3, 35.0, 37.3, 33.7, 34.5),
    "ChatGLM3-6B": (39.5, 39.1, 10.5, 0.2, 34.6, 31.8, 38.2, 25.0, 20.0, 32.9, 33.8),
    "Qwen-7B-chat": (43.8, 46.8, 33.3, 18.4, 41.9, 40.0, 43.2, 33.3, 17.5, 38.8, 40.4),
    "Qwen-14B-chat": (56.2, 58.6, 41.7, 21.1, 52.7, 51.3, 51.0, 27.5, 41.7, 47.9, 50.3),
    "Baichuan2-7B-Chat": (51.2, 50.9, 30.0, 2.6, 44.6, 48.1, 46.0, 35.0, 7.5, 42.1, 43.4),
    "Baichuan2-13B-Chat": (43.8, 52.7, 36.7, 7.9, 44.2, 41.3, 46.4, 43.3, 15.0, 41.7, 43.0),
    "文心一言": (45.0, 60.9, 36.7, 23.7, 49.6, 53.8, 59.1, 38.3, 20.0, 51.5, 50.6),
    "ChatGPT(API)": (45.6, 44.1, 36.7, 13.2, 41.2, 34.4, 32.3, 30.0, 15.0, 31.2, 36.2),
    "GPT-4(API)": (65.1, 59.6, 46.7, 15.8, 57.3, 40.6, 42.7, 33.3, 17.5, 38.8, 48.1),
    "HuatuoGPT-II(7B)": (41.9, 61.0, 35.0, 15.7, 47.7, 52.5, 51.4, 41.7, 15.0, 47.5, 47.6),
    "HuatuoGPT-II(13B)": (47.5, 64.1, 45.0, 23.7, 52.9, 48.8, 61.8, 45.0, 17.5, 51.6, 52.3),
    "HuatuoGPT-II(34B)": (66.3, 75.0, 48.3, 34.2, 65.5, 63.6, 71.4, 50.0, 27.5, 62.5, 64.0),
}


@dataclass(frozen=True)
class TableSettings:
    """Which table, of which exams."""

    layout: str = "benchmarks"
    """benchmarks (the paper's Table 1: exams and their mean) or pharmacist (its Table 2: question types and tracks)"""
    published: bool = True
    """Show the published rows beside ours, marked; they exist for the pharmacist table"""

    def __post_init__(self) -> None:
        one_of("layout", self.layout, ("benchmarks", "pharmacist"))


def run_table(
    results: Sequence[str | os.PathLike[str]],
    settings: TableSettings | None = None,
    exams: Sequence[str] = BENCHMARKS,
    output: str | os.PathLike[str] | None = None,
) -> str:
    """The table as text; also written to `output`, as Markdown or, by its suffix, CSV.

    results: output directories of `run_exam`; those of one model fill one row together.
    exams: names of the formats that the benchmark table has columns for.
    Raises: DataError when a model brings one exam twice; IntegrityError when a result is unfinished or changed.
    """
    settings = settings or TableSettings()
    if output is not None and Path(output).suffix not in (".md", ".csv"):
        raise ConfigError(f"wrong --output: got {output}, need a file that ends with .md or .csv.")
    by_model: dict[str, dict[str, _Records]] = {}
    for directory in results:
        result = read_result(directory)
        for name, records in _by_part(list(result.records.values())).items():
            if name in (known := by_model.setdefault(result.model, {})):
                raise DataError(
                    f"{name} of {result.model} is there twice, the second time in {directory}. Leave one out."
                )
            known[name] = records
    build = _benchmark_rows if settings.layout == "benchmarks" else _pharmacist_rows
    rows = build(by_model, list(exams), settings.published)
    notes = _notes(settings)
    if output is not None:
        with atomic_write(output, "w") as handle:
            handle.write(_as_csv(rows) if Path(output).suffix == ".csv" else _as_markdown(rows, notes))
    return "\n".join([format_table(rows), *notes])


def _by_part(records: _Records) -> dict[str, _Records]:
    """{exam, or track of the pharmacist exam: its records}."""
    parts: dict[str, _Records] = {}
    for record in records:
        exam = record["exam"]
        parts.setdefault(f"{exam}/{record['subset']}" if exam == "pharmacist" else exam, []).append(record)
    return parts


def _benchmark_rows(
    by_model: Mapping[str, Mapping[str, _Records]], exams: list[str], published: bool
) -> list[list[str]]:
    rows = [["Model", *(exam_format(exam).title for exam in exams), "Mean"]]
    for model, parts in by_model.items():
        scores = [score_replies(parts[exam])["by_exam"][exam] if exam in parts else None for exam in exams]
        cells = [
            "" if score is None else _cell(score["published_score"], score["published_score_interval"])
            for score in scores
        ]
        known = [
            score["published_score"] for score in scores if score is not None and score["published_score"] is not None
        ]
        mean = ""
        if len(known) == len(exams):
            # Each exam's own interval is about its published score; together they spread as independent normals do.
            halves = [(s["published_score_interval"][1] - s["published_score_interval"][0]) / 2 for s in scores if s]
            half = sum(half**2 for half in halves) ** 0.5 / len(exams)
            middle = sum(known) / len(known)
            mean = _cell(middle, [middle - half, middle + half])
        rows.append([model, *cells, mean])
    return rows


def _pharmacist_rows(
    by_model: Mapping[str, Mapping[str, _Records]], exams: list[str], published: bool
) -> list[list[str]]:
    header = [f"{track}: {kind}" for track in TRACKS.values() for kind in (*QUESTION_TYPES.values(), "Total")]
    rows = [["Model", *header, "AVG"]]
    if published:
        rows += [
            [f"{name} (published)", *(f"{value:.1f}" for value in values)]
            for name, values in PUBLISHED_PHARMACIST.items()
        ]
    for model, parts in by_model.items():
        cells: list[str] = []
        totals: list[tuple[int, int]] = []
        for track in TRACKS:
            records = parts.get(f"pharmacist/{track}", [])
            for kind in (*QUESTION_TYPES, None):
                own = [record for record in records if kind in (None, record["question_type"])]
                score = score_replies(own) if own else None
                cells.append("" if score is None else _cell(score["accuracy"], score["interval"]))
                if kind is None and score is not None and score["answered"]:
                    totals.append((score["correct"], score["answered"]))
        mean = ""
        if len(totals) == len(TRACKS):
            mean = _cell(
                sum(correct / count for correct, count in totals) / len(totals), interval_of_mean_share(totals)
            )
        rows.append([model, *cells, mean])
    return rows


def _cell(share: float | None, interval: Sequence[float] | None) -> str:
    if share is None or interval is None:
        return "-"
    return f"{percent(share)} [{percent(interval[0])}, {percent(interval[1])}]"


def _notes(settings: TableSettings) -> list[str]:
    notes = ["Ours: accuracy in %, in brackets its 95 % interval."]
    if settings.layout == "pharmacist" and settings.published:
        notes.append(f"(published): read from {PUBLISHED_SOURCE}; not measured here, without intervals.")
    return notes


def _as_markdown(rows: list[list[str]], notes: list[str]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join([*lines, "", *notes]) + "\n"


def _as_csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
