"""The exam: questions to replies, replies to letters, letters to scores.

Invariant: `manifest.json` is written last; with it, `replies.jsonl` and `scores.json` are complete and belong together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.backends import open_generator
from megatron_huatuo.evaluate.collect import collect_replies, is_failed, output_directory
from megatron_huatuo.evaluate.generate import GeneratedReply, GenerationSettings, ModelEndpoint
from megatron_huatuo.evaluate.parse import parse_answer
from megatron_huatuo.evaluate.questions import chance_level, question_prompt, read_questions, smallest_answers
from megatron_huatuo.evaluate.score import score_replies
from megatron_huatuo.storage.jsonl import BadLines, write_jsonl
from megatron_huatuo.storage.manifest import MANIFEST_NAME, sha256_file, write_json, write_manifest
from megatron_huatuo.storage.records import Question


def run_exam(
    *,
    model: str | os.PathLike[str] | ModelEndpoint,
    questions: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    generation: GenerationSettings | None = None,
    trust_remote_code: bool = False,
    max_bad_lines: int = 0,
    max_failed: int = 0,
) -> dict[str, Any]:
    """Ask every question, score the replies, and return the content of `scores.json`.

    model: a Hugging Face directory, or an endpoint.
    questions: files of exam questions (`read_questions`).
    output: directory for `replies.jsonl`, `scores.json`, `manifest.json` and the request log; the same directory
        again continues where a run was stopped.
    trust_remote_code: run the Python code that lies in the Hugging Face directory.
    max_bad_lines: bad lines in the question files that are skipped before the run stops.
    max_failed: questions that an endpoint may leave without a reply; they count as unparsed.
    Raises: DataError for the questions, ConfigError for the model, EndpointError for the endpoint.
    """
    if isinstance(questions, (str, os.PathLike)):
        raise ConfigError(f"wrong questions: got one path {questions!s}, need a list of paths.")
    bad_lines = BadLines(max_bad_lines)
    exam = read_questions(questions, bad_lines)
    with output_directory(output) as directory:
        settings = generation or GenerationSettings()
        generator = open_generator(model, directory, settings, trust_remote_code=trust_remote_code)
        prompts = [question_prompt(question) for question in exam]
        replies = collect_replies(generator, prompts, description="exam", max_failed=max_failed)
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


def _reply_records(
    exam: Sequence[Question], prompts: Sequence[str], replies: Sequence[GeneratedReply]
) -> list[dict[str, Any]]:
    """The lines of `replies.jsonl`."""
    records = []
    for question, prompt, reply, smallest in zip(exam, prompts, replies, smallest_answers(exam), strict=True):
        filled = {letter: text for letter, text in question.option.items() if text.strip()}
        parsed = parse_answer(reply.text, question.question, filled, multiple=smallest > 0)
        records.append(
            {
                "id": question.id,
                "question_type": question.question_type,
                "reply": reply.text,
                "parsed": parsed,
                "answer": question.answer,
                "correct": parsed == question.answer,
                "source": question.source,
                "finish_reason": reply.finish_reason,
                "chance": chance_level(len(filled), smallest),
                "prompt": prompt,
            }
        )
    return records
