"""The exam: questions to replies or likelihoods, those to letters, letters to scores.

Invariant: `manifest.json` is written last; with it, `replies.jsonl` and `scores.json` are complete and belong together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answer_parser import parse_answer
from megatron_huatuo.evaluate.answering.replies import (
    check_failed,
    collect_replies,
    is_failed,
    open_generator,
    open_scorer,
    output_directory,
)
from megatron_huatuo.evaluate.asked_exam import NORMALISATIONS, AskedExam, ExamSettings, open_exam
from megatron_huatuo.evaluate.generate import (
    Continued,
    GeneratedReply,
    GenerationSettings,
    Likelihood,
    ModelEndpoint,
    Request,
)
from megatron_huatuo.evaluate.overlap import OverlapSettings, add_overlap, find_overlap
from megatron_huatuo.evaluate.score import count_group, score_replies
from megatron_huatuo.exams.exam_format import filled_options
from megatron_huatuo.exams.exam_formats import exam_format
from megatron_huatuo.exams.likeliest_option import likeliest, with_one_letter
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.exam_results import EXAM_KIND, REPLIES, SCORES
from megatron_huatuo.storage.jsonl import BadLines, write_jsonl
from megatron_huatuo.storage.manifest import MANIFEST_NAME, describe_input, write_json, write_manifest


def run_exam(
    model: str | os.PathLike[str] | ModelEndpoint,
    questions: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: ExamSettings | None = None,
    generation: GenerationSettings | None = None,
    overlap: OverlapSettings | None = None,
) -> dict[str, Any]:
    """Ask the questions, score the replies, and return the content of `scores.json`.

    model: a Hugging Face directory, or an endpoint.
    questions: files of exam questions (`read_questions`).
    output: directory for `replies.jsonl`, `scores.json`, `manifest.json` and the request log; the same directory
        again continues where a run was stopped.
    overlap: what the model was trained on; the scores are then given with and without the questions found there.
    Raises: DataError for the questions, ConfigError for the model, EndpointError for the endpoint. When more requests
        than allowed stayed without a reply, it comes after replies and scores are written, with what is missing
        counted in them, and without a manifest.
    """
    if isinstance(questions, (str, os.PathLike)):
        raise ConfigError(f"wrong questions: got one path {questions!s}, need a list of paths.")
    settings, generation = settings or ExamSettings(), generation or GenerationSettings()
    bad_lines = BadLines(settings.max_bad_lines)
    asked = open_exam(questions, settings, bad_lines)
    found = (
        find_overlap(asked.questions, overlap.overlap_index, overlap.overlap_workers)
        if overlap and overlap.overlap_index
        else None
    )
    with output_directory(output) as directory:
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        outcome = (_by_generation if settings.scoring == "generation" else _by_loglikelihood)(
            model, directory, asked, generation
        )
        scores = score_replies(outcome.records)
        scores["asked_with"] = {**outcome.description, **asked.description(generation)}
        scores.update(outcome.extra_scores)
        if overlap is not None and found is not None:
            scores["overlap"] = add_overlap(
                outcome.records, [question.id for question in asked.questions], *found, overlap
            )
        write_jsonl(directory / REPLIES, outcome.records)
        write_json(directory / SCORES, scores)
        check_failed(outcome.requests, outcome.replies, settings.max_failed)
        content = {
            "model": outcome.description,
            "settings": asked.description(generation),
            "questions": [describe_input(path) for path in questions],
            "num_questions": len(asked.questions),
            "bad_lines": [bad._asdict() for bad in bad_lines.lines],
            "failed": len({r for r, reply in zip(outcome.requests, outcome.replies, strict=True) if is_failed(reply)}),
        }
        write_manifest(directory, EXAM_KIND, content, [REPLIES, SCORES])
    return scores


@dataclass
class _Outcome:
    """What came back: the lines of `replies.jsonl`, who answered, and what was asked of an endpoint."""

    records: list[dict[str, Any]]
    description: dict[str, Any]
    requests: Sequence[Request] = ()
    replies: Sequence[GeneratedReply] = ()
    extra_scores: dict[str, Any] = field(default_factory=dict)


def _by_generation(
    model: str | os.PathLike[str] | ModelEndpoint, directory: Path, exam: AskedExam, generation: GenerationSettings
) -> _Outcome:
    """Replies read as a person reads them; with votes the most frequent answer counts."""
    generator = open_generator(model, directory, generation, trust_remote_code=exam.settings.trust_remote_code)
    seeds: list[int | None] = [None] if exam.settings.votes == 1 else [*exam.vote_seeds()]
    prompts = [exam.prompt(question) for question in exam.questions]
    requests = [Request(prompt, seed) for prompt in prompts for seed in seeds]
    replies = collect_replies(generator, requests, description="exam")
    records = []
    for index, (question, prompt) in enumerate(zip(exam.questions, prompts, strict=True)):
        own = replies[index * len(seeds) : (index + 1) * len(seeds)]
        read = [
            parse_answer(
                reply.text,
                exam_format(question.exam).stem(question),
                filled_options(question.option),
                multiple=exam.smallest[index] > 0,
            )
            for reply in own
        ]
        chosen = _most_frequent(own, read)
        votes = [
            {"seed": seed, "reply": reply.text, "parsed": parsed, "finish_reason": reply.finish_reason}
            for seed, reply, parsed in zip(seeds, own, read, strict=True)
        ]
        records.append(
            exam.record(
                index,
                reply=own[chosen].text,
                parsed=read[chosen],
                finish_reason=own[chosen].finish_reason,
                prompt=prompt,
                **({"votes": votes} if len(seeds) > 1 else {}),
            )
        )
    return _Outcome(records, generator.description, requests, replies)


def _most_frequent(replies: Sequence[GeneratedReply], read: Sequence[str | None]) -> int:
    """Number of the first reply that gives the most frequent answer; among equals the one reached first counts.

    Without any answer the first reply that came at all.
    """
    counts = Counter(answer for answer in read if answer is not None)
    if counts:
        return read.index(max(counts, key=lambda answer: (counts[answer], -read.index(answer))))
    return next((number for number, reply in enumerate(replies) if not is_failed(reply)), 0)


def _by_loglikelihood(
    model: str | os.PathLike[str] | ModelEndpoint, directory: Path, exam: AskedExam, generation: GenerationSettings
) -> _Outcome:
    """The likeliest option of every question with one right letter; those with several are left out and counted."""
    if isinstance(model, ModelEndpoint):
        raise ConfigError(
            "--scoring loglikelihood needs a Hugging Face directory: endpoints do not tell how likely a given text is. "
            "Leave out --base-url, or use --scoring generation."
        )
    one_letter = with_one_letter(exam.questions)
    left_out = len(exam.questions) - len(one_letter)
    if not one_letter:
        raise ConfigError(
            "--scoring loglikelihood picks one option, but every question asks for several. Use --scoring generation."
        )
    if left_out:
        get_logger(__name__).warning(
            "%d questions that ask for several letters are left out: log-likelihood picks one option", left_out
        )
    scorer = open_scorer(model, directory, generation, trust_remote_code=exam.settings.trust_remote_code)
    texts = [exam.option_texts(exam.questions[index]) for index in one_letter]
    scored = scorer.score([Continued(context, tuple(choices.values())) for context, choices in texts])
    records: list[dict[str, Any]] = []
    picked: dict[str, list[dict[str, Any]]] = {name: [] for name in NORMALISATIONS}
    for index, (context, choices), likelihoods in zip(one_letter, texts, scored, strict=True):
        letters = list(choices)
        best = {name: None if likelihoods is None else _best(letters, likelihoods, name) for name in picked}
        record = exam.record(
            index,
            reply="",
            parsed=best[exam.settings.normalise],
            finish_reason="prompt too long" if likelihoods is None else "stop",
            prompt=context,
            loglikelihood=None if likelihoods is None else dict(zip(letters, likelihoods, strict=True)),
        )
        records.append(record)
        for name, letter in best.items():
            picked[name].append({**record, "parsed": letter, "correct": letter == record["answer"]})
    extra = {
        "left_out": left_out,
        "by_normalisation": {name: count_group(group) for name, group in picked.items()},
    }
    return _Outcome(records, scorer.description, extra_scores=extra)


def _best(letters: Sequence[str], likelihoods: Sequence[Likelihood], normalise: str) -> str:
    """The letter of the largest log-likelihood, as a sum, per token or per character; the first of equals."""
    place = NORMALISATIONS.index(normalise)
    return likeliest(
        letters, [entry.total / (1, entry.tokens, max(1, entry.characters))[place] for entry in likelihoods]
    )
