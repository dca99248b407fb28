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

from megatron_huatuo.config import at_least, one_of, to_plain
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
from megatron_huatuo.evaluate.generate import (
    Continued,
    GeneratedReply,
    GenerationSettings,
    Likelihood,
    ModelEndpoint,
    Request,
)
from megatron_huatuo.evaluate.overlap import OverlapSettings, add_overlap, find_overlap
from megatron_huatuo.evaluate.result_directory import MANIFEST_KIND
from megatron_huatuo.evaluate.score import count_group, score_replies
from megatron_huatuo.exams.exam_format import ExamQuestion, filled_options
from megatron_huatuo.exams.exam_formats import OWN, exam_format
from megatron_huatuo.exams.likeliest_option import PUBLISHED, OptionTexts, likeliest, option_texts, with_one_letter
from megatron_huatuo.exams.questions import (
    AUTO,
    chance_level,
    find_examples,
    read_questions,
    select_questions,
    smallest_answers,
)
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.jsonl import BadLines, write_jsonl
from megatron_huatuo.storage.manifest import MANIFEST_NAME, sha256_file, write_json, write_manifest

_NORMALISATIONS = ("none", "token", "character")


@dataclass(frozen=True)
class ExamSettings:
    """Which questions are asked, and how."""

    format: str = AUTO
    """Exam format of the question files; auto recognises each file by its beginning"""
    answer_key: str | None = None
    """File of the answers, {id: answer}, of an exam that keeps them apart; only the questions in it are asked"""
    subset: tuple[str, ...] = ()
    """Ask only these subsets, sources or question types; "medical" stands for the medical subjects of a general exam"""
    limit: int | None = None
    """Ask at most so many questions, drawn by the seed"""
    seed: int = 0
    """Decides which questions --limit draws, which examples --few-shot shows, and the replies of --votes"""
    prompt: str = PUBLISHED
    """Words of the request: published (the exam's own) or recipe (that of HuatuoGPT-II's evaluation, for every exam)"""
    few_shot: int = 0
    """Solved examples shown before each question"""
    few_shot_from: tuple[str, ...] = ()
    """Question files that the examples come from; by default the asked files themselves, without the asked question"""
    scoring: str = "generation"
    """generation (the reply is read) or loglikelihood (the likeliest option counts; Hugging Face directories only)"""
    votes: int = 1
    """Replies sampled for each question, of which the most frequent answer counts; 1: one greedy reply"""
    scored_text: str = "letter"
    """What loglikelihood scores: letter (options shown in the prompt) or text (options not shown)"""
    normalise: str = "none"
    """How loglikelihood compares options: none (sums, as published), per token, or per character"""
    trust_remote_code: bool = False
    """Run the Python code that lies in the Hugging Face directory"""
    max_bad_lines: int = 0
    """Bad lines of the question files that are skipped before the run stops"""
    max_failed: int = 0
    """Requests that an endpoint may leave without a reply; their questions are missing from the score"""

    def __post_init__(self) -> None:
        if self.format != AUTO:
            exam_format(self.format)
        at_least("limit", self.limit, 1)
        at_least("votes", self.votes, 1)
        for name in ("few_shot", "max_bad_lines", "max_failed"):
            at_least(name, getattr(self, name), 0)
        one_of("prompt", self.prompt, (PUBLISHED, "recipe"))
        one_of("scoring", self.scoring, ("generation", "loglikelihood"))
        one_of("scored_text", self.scored_text, ("letter", "text"))
        one_of("normalise", self.normalise, _NORMALISATIONS)
        if self.few_shot_from and not self.few_shot:
            raise ConfigError("--few-shot-from has no effect without --few-shot N. Give the number of examples.")
        if self.scoring == "loglikelihood" and self.votes > 1:
            raise ConfigError(f"--votes has no effect with --scoring loglikelihood: got {self.votes}. Leave it out.")
        if self.scoring == "generation":
            for name, default in (("scored_text", "letter"), ("normalise", "none")):
                if (value := getattr(self, name)) != default:
                    flag = name.replace("_", "-")
                    raise ConfigError(f"--{flag} has no effect with --scoring generation: got {value!r}. Leave it out.")


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
    everything = read_questions(questions, bad_lines, settings.format, settings.answer_key)
    exam = select_questions(everything, settings.subset, settings.limit, settings.seed)
    candidates: Sequence[ExamQuestion] = everything
    if settings.few_shot_from:
        candidates = read_questions(settings.few_shot_from, bad_lines, settings.format)
    asked = _Exam(exam, candidates, settings)
    found = (
        find_overlap(exam, overlap.overlap_index, overlap.overlap_workers)
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
            scores["overlap"] = add_overlap(outcome.records, [question.id for question in exam], *found, overlap)
        write_jsonl(directory / "replies.jsonl", outcome.records)
        write_json(directory / "scores.json", scores)
        check_failed(outcome.requests, outcome.replies, settings.max_failed)
        content = {
            "model": outcome.description,
            "settings": asked.description(generation),
            "questions": [{"file": os.fspath(path), "sha256": sha256_file(path)} for path in questions],
            "num_questions": len(exam),
            "bad_lines": [bad._asdict() for bad in bad_lines.lines],
            "failed": len({r for r, reply in zip(outcome.requests, outcome.replies, strict=True) if is_failed(reply)}),
        }
        write_manifest(directory, MANIFEST_KIND, content, ["replies.jsonl", "scores.json"])
    return scores


@dataclass
class _Outcome:
    """What came back: the lines of `replies.jsonl`, who answered, and what was asked of an endpoint."""

    records: list[dict[str, Any]]
    description: dict[str, Any]
    requests: Sequence[Request] = ()
    replies: Sequence[GeneratedReply] = ()
    extra_scores: dict[str, Any] = field(default_factory=dict)


class _Exam:
    """The chosen questions with their examples and prompts."""

    def __init__(
        self, questions: Sequence[ExamQuestion], candidates: Sequence[ExamQuestion], settings: ExamSettings
    ) -> None:
        self.questions, self.settings = questions, settings
        self._candidates = candidates
        self.smallest = smallest_answers(questions)

    def description(self, generation: GenerationSettings) -> dict[str, Any]:
        """The settings that decide the scores."""
        kept: dict[str, Any] = to_plain(self.settings)
        for name in ("trust_remote_code", "max_bad_lines", "max_failed"):
            del kept[name]
        if self.settings.votes > 1:
            kept |= {"temperature": generation.temperature, "vote_seeds": self.vote_seeds()}
        return kept

    def vote_seeds(self) -> list[int]:
        """Seeds of the sampled replies."""
        return [self.settings.seed + number for number in range(self.settings.votes)]

    def examples(self, question: ExamQuestion) -> list[ExamQuestion]:
        """The solved examples of one question."""
        return find_examples(question, self._candidates, self.settings.few_shot, self.settings.seed)

    def prompt(self, question: ExamQuestion) -> str:
        """The request for one question."""
        chosen = exam_format(question.exam if self.settings.prompt == PUBLISHED else OWN)
        return chosen.prompt(question, self.examples(question))

    def option_texts(self, question: ExamQuestion) -> OptionTexts:
        """What is scored of one question by log-likelihood."""
        by_text = self.settings.scored_text == "text"
        return option_texts(question, self.examples(question), prompt=self.settings.prompt, by_text=by_text)

    def record(self, index: int, **answer: Any) -> dict[str, Any]:
        """A line of `replies.jsonl`. answer: reply, parsed, finish_reason, prompt, and what else is known."""
        question, parsed = self.questions[index], answer["parsed"]
        is_missing = (answer["finish_reason"] or "").startswith("failed:")
        return {
            "id": question.id,
            "question_type": question.question_type,
            "reply": answer.pop("reply"),
            "parsed": answer.pop("parsed"),
            "answer": question.answer,
            "correct": None if is_missing else parsed == question.answer,
            "exam": question.exam,
            "subset": question.subset,
            "source": question.source,
            "question": question.question,
            "finish_reason": answer.pop("finish_reason"),
            "chance": chance_level(len(filled_options(question.option)), self.smallest[index]),
            **answer,
        }


def _by_generation(
    model: str | os.PathLike[str] | ModelEndpoint, directory: Path, exam: _Exam, generation: GenerationSettings
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
    model: str | os.PathLike[str] | ModelEndpoint, directory: Path, exam: _Exam, generation: GenerationSettings
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
    picked: dict[str, list[dict[str, Any]]] = {name: [] for name in _NORMALISATIONS}
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
    place = _NORMALISATIONS.index(normalise)
    return likeliest(
        letters, [entry.total / (1, entry.tokens, max(1, entry.characters))[place] for entry in likelihoods]
    )
