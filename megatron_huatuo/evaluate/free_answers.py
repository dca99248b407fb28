"""Answers of a model to open questions, in the layout that judges read.

Invariant: `manifest.json` is written last; with it `answers.jsonl` is complete. Every reply is in the request log before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megatron_huatuo.config import at_least, to_plain
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.evaluate.answering.replies import (
    check_failed,
    collect_replies,
    is_failed,
    open_generator,
    output_directory,
)
from megatron_huatuo.evaluate.generate import GenerationSettings, ModelEndpoint, Request
from megatron_huatuo.evaluate.judging.answers import read_by_id, read_identifier, read_question
from megatron_huatuo.storage.jsonl import write_jsonl
from megatron_huatuo.storage.manifest import MANIFEST_NAME, describe_input, write_manifest

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class AnswerSettings:
    """How open questions are answered."""

    seed: int | None = None
    """Sample each answer with this seed at --temperature; without it answers are greedy"""
    trust_remote_code: bool = False
    """Run the Python code that lies in the Hugging Face directory"""
    max_failed: int = 0
    """Requests that an endpoint may leave without a reply; their questions have no answer"""

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        at_least("max_failed", self.max_failed, 0)


class OpenQuestion(NamedTuple):
    """One question of one turn. label: its kind, where the file names it."""

    id: str
    text: str
    label: str | None


def read_open_questions(paths: Sequence[str | os.PathLike[str]]) -> list[OpenQuestion]:
    """Questions of JSON or JSON Lines: `id` (or `prompt_id`) and the text under `query`, `prompt` or `question`.

    Raises: DataError naming file, line and key; for a repeated id; for files without a question.
    """
    none_found = f"no open questions: {', '.join(map(str, paths))}. Give a file with `id` and `query`."
    return [*read_by_id(paths, _parse, none_found).values()]


def _parse(raw: Any, where: str) -> list[tuple[OpenQuestion, str]]:
    if not isinstance(raw, dict):
        raise DataError(f"wrong record: got {type(raw).__name__}, need an object ({where})")
    label = raw.get("label")
    question = OpenQuestion(
        read_identifier(raw, where), read_question(raw, where), label if isinstance(label, str) else None
    )
    if not question.text.strip():
        raise DataError(f"blank question: need text under query, prompt or question ({where})")
    return [(question, where)]


def run_answers(
    model: str | os.PathLike[str] | ModelEndpoint,
    questions: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: AnswerSettings | None = None,
    generation: GenerationSettings | None = None,
) -> int:
    """Answer the questions; returns how many answers there are.

    model: a Hugging Face directory, whose own chat template is used, or an endpoint.
    output: directory for `answers.jsonl`, `manifest.json` and the request log; the same one again continues.
    Raises: DataError for the questions, ConfigError for the model, EndpointError for the endpoint. When more requests than
        allowed stayed without a reply, it comes after the answers are written, and without a manifest.
    """
    settings, generation = settings or AnswerSettings(), generation or GenerationSettings()
    if settings.seed is None and generation.temperature != GenerationSettings.temperature:
        raise ConfigError(f"--temperature has no effect without --seed: got {generation.temperature}. Give a seed.")
    asked = read_open_questions(questions)
    requests = [Request(question.text, settings.seed) for question in asked]
    with output_directory(output) as directory:
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        generator = open_generator(model, directory, generation, trust_remote_code=settings.trust_remote_code)
        replies = collect_replies(generator, requests, description="answers")
        records = [
            {"id": question.id, "query": question.text, "model_output": reply.text, "label": question.label}
            | {"finish_reason": reply.finish_reason}
            for question, reply in zip(asked, replies, strict=True)
            if not is_failed(reply)
        ]
        write_jsonl(Path(directory) / ANSWERS, records)
        check_failed(requests, replies, settings.max_failed)
        about = {
            "model": generator.description,
            "settings": to_plain(settings) | {"temperature": None if settings.seed is None else generation.temperature},
            "questions": [describe_input(path) for path in questions],
        }
        write_manifest(directory, "answers", about, [ANSWERS])
    return len(records)
