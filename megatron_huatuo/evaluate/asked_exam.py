"""An exam as it is asked: its settings, the questions that were chosen, their examples, prompts and options.

Invariant: what is asked follows from files and settings alone, whoever answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_huatuo.config import at_least, one_of, to_plain
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.generate import GenerationSettings
from megatron_huatuo.exams.exam_format import ExamQuestion, filled_options
from megatron_huatuo.exams.exam_formats import OWN, exam_format
from megatron_huatuo.exams.likeliest_option import PUBLISHED, OptionTexts, option_texts
from megatron_huatuo.exams.questions import (
    AUTO,
    chance_level,
    find_examples,
    read_questions,
    select_questions,
    smallest_answers,
)
from megatron_huatuo.storage.jsonl import BadLines

NORMALISATIONS = ("none", "token", "character")


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
        one_of("normalise", self.normalise, NORMALISATIONS)
        if self.few_shot_from and not self.few_shot:
            raise ConfigError("--few-shot-from has no effect without --few-shot N. Give the number of examples.")
        if self.scoring == "loglikelihood" and self.votes > 1:
            raise ConfigError(f"--votes has no effect with --scoring loglikelihood: got {self.votes}. Leave it out.")
        if self.scoring == "generation":
            for name, default in (("scored_text", "letter"), ("normalise", "none")):
                if (value := getattr(self, name)) != default:
                    flag = name.replace("_", "-")
                    raise ConfigError(f"--{flag} has no effect with --scoring generation: got {value!r}. Leave it out.")


class AskedExam:
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


def open_exam(questions: Sequence[str | os.PathLike[str]], settings: ExamSettings, bad_lines: BadLines) -> AskedExam:
    """Read and choose the questions, and the files of examples. Raises: DataError, ConfigError naming file or setting."""
    everything = read_questions(questions, bad_lines, settings.format, settings.answer_key)
    exam = select_questions(everything, settings.subset, settings.limit, settings.seed)
    candidates: Sequence[ExamQuestion] = everything
    if settings.few_shot_from:
        candidates = read_questions(settings.few_shot_from, bad_lines, settings.format)
    return AskedExam(exam, candidates, settings)
