"""The exam: questions to replies, replies to letters, letters to scores.

Invariant: `manifest.json` is written last; with it, `replies.jsonl` and `scores.json` are complete and belong together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_huatuo.config import at_least
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answer_parser import parse_answer
from megatron_huatuo.evaluate.exams.exam_format import ExamQuestion, filled_options
from megatron_huatuo.evaluate.exams.registry import exam_format
from megatron_huatuo.evaluate.generate import GeneratedReply, GenerationSettings, ModelEndpoint
from megatron_huatuo.evaluate.questions import (
    AUTO,
    chance_level,
    find_examples,
    read_questions,
    select_questions,
    smallest_answers,
)
from megatron_huatuo.evaluate.replies import collect_replies, is_failed, open_generator, output_directory
from megatron_huatuo.evaluate.score import score_replies
from megatron_huatuo.storage.jsonl import BadLines, write_jsonl
from megatron_huatuo.storage.manifest import MANIFEST_NAME, sha256_file, write_json, write_manifest


@dataclass(frozen=True)
class ExamSettings:
    """Which questions are asked, and how."""

    format: str = AUTO
    """Exam format of the question files; auto recognises each file by its beginning"""
    subset: tuple[str, ...] = ()
    """Ask only these subsets, sources or question types"""
    limit: int | None = None
    """Ask at most so many questions, drawn by the seed"""
    seed: int = 0
    """Decides which questions --limit draws and which examples --few-shot shows"""
    few_shot: int = 0
    """Solved examples shown before each question"""
    few_shot_from: tuple[str, ...] = ()
    """Question files that the examples come from; by default the asked files themselves, without the asked question"""
    trust_remote_code: bool = False
    """Run the Python code that lies in the Hugging Face directory"""
    max_bad_lines: int = 0
    """Bad lines of the question files that are skipped before the run stops"""
    max_failed: int = 0
    """Questions that an endpoint may leave without a reply"""

    def __post_init__(self) -> None:
        if self.format != AUTO:
            exam_format(self.format)
        at_least("limit", self.limit, 1)
        for name in ("few_shot", "max_bad_lines", "max_failed"):
            at_least(name, getattr(self, name), 0)
        if self.few_shot_from and not self.few_shot:
            raise ConfigError("--few-shot-from has no effect without --few-shot N. Give the number of examples.")


def run_exam(
    model: str | os.PathLike[str] | ModelEndpoint,
    questions: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: ExamSettings | None = None,
    generation: GenerationSettings | None = None,
) -> dict[str, Any]:
    """Ask the questions, score the replies, and return the content of `scores.json`.

    model: a Hugging Face directory, or an endpoint.
    questions: files of exam questions (`read_questions`).
    output: directory for `replies.jsonl`, `scores.json`, `manifest.json` and the request log; the same directory
        again continues where a run was stopped.
    Raises: DataError for the questions, ConfigError for the model, EndpointError for the endpoint.
    """
    if isinstance(questions, (str, os.PathLike)):
        raise ConfigError(f"wrong questions: got one path {questions!s}, need a list of paths.")
    settings = settings or ExamSettings()
    bad_lines = BadLines(settings.max_bad_lines)
    everything = read_questions(questions, bad_lines, settings.format)
    exam = select_questions(everything, settings.subset, settings.limit, settings.seed)
    prompts = _prompts(exam, everything, settings, bad_lines)
    with output_directory(output) as directory:
        generator = open_generator(
            model, directory, generation or GenerationSettings(), trust_remote_code=settings.trust_remote_code
        )
        replies = collect_replies(generator, prompts, description="exam", max_failed=settings.max_failed)
        records = _reply_records(exam, prompts, replies)
        scores = score_replies(records)
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        write_jsonl(directory / "replies.jsonl", records)
        write_json(directory / "scores.json", scores)
        content = {
            "model": generator.description,
            "questions": [{"file": os.fspath(path), "sha256": sha256_file(path)} for path in questions],
            "num_questions": len(exam),
            "bad_lines": [bad._asdict() for bad in bad_lines.lines],
            "failed": sum(map(is_failed, replies)),
        }
        write_manifest(directory, "exam", content, ["replies.jsonl", "scores.json"])
    return scores


def _prompts(
    exam: Sequence[ExamQuestion], everything: Sequence[ExamQuestion], settings: ExamSettings, bad_lines: BadLines
) -> list[str]:
    """The request for each question, its examples included."""
    candidates: Sequence[ExamQuestion] = ()
    if settings.few_shot:
        source = settings.few_shot_from
        candidates = read_questions(source, bad_lines, settings.format) if source else everything
    return [
        exam_format(question.exam).prompt(
            question, find_examples(question, candidates, settings.few_shot, settings.seed)
        )
        for question in exam
    ]


def _reply_records(
    exam: Sequence[ExamQuestion], prompts: Sequence[str], replies: Sequence[GeneratedReply]
) -> list[dict[str, Any]]:
    """The lines of `replies.jsonl`."""
    records = []
    for question, prompt, reply, smallest in zip(exam, prompts, replies, smallest_answers(exam), strict=True):
        filled = filled_options(question.option)
        parsed = parse_answer(reply.text, question.question, filled, multiple=smallest > 0)
        records.append(
            {
                "id": question.id,
                "question_type": question.question_type,
                "reply": reply.text,
                "parsed": parsed,
                "answer": question.answer,
                "correct": parsed == question.answer,
                "exam": question.exam,
                "subset": question.subset,
                "source": question.source,
                "finish_reason": reply.finish_reason,
                "chance": chance_level(len(filled), smallest),
                "prompt": prompt,
            }
        )
    return records
