"""The commands of `tools/evaluate.py` whose answers other models judge: their flags, and the call of each."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.evaluate.generate import EndpointOptions
from megatron_huatuo.evaluate.judging.grade import format_grades, run_grade
from megatron_huatuo.evaluate.judging.judge import format_judgement, run_judge
from megatron_huatuo.evaluate.judging.panel import JudgeSettings, choose_judges
from megatron_huatuo.evaluate.judging.rate import format_ratings, run_rate
from megatron_huatuo.llm.endpoint_settings import PatienceSettings


def judge_parsers() -> dict[str, ArgumentParser]:
    """{command: its parser}."""
    answers = {"--answers-a": "answers of model A", "--answers-b": "answers of model B"}
    parsers = {
        "judge": _parser("Have a model compare two files of answers, in both orders: verdicts.jsonl.", answers),
        "rate": _parser("Have answers rated from 1 to 10 by a rubric: ratings.jsonl.", {"--answers": "answers"}),
        "grade": _parser(
            "Have each criterion of each answer graded, with points: grades.jsonl.",
            {"--answers": "answers", "--criteria": "criteria with points, as in HealthBench"},
        ),
    }
    parsers["rate"].add_argument(
        "--rubric", type=str, default="auto", metavar="FILE", help="auto, zh, en or a YAML file"
    )
    return parsers


def _parser(description: str, files: dict[str, str]) -> ArgumentParser:
    judge = argument_parser(description)
    for flag, what in files.items():
        judge.add_argument(flag, type=str, required=True, metavar="FILE", help=what)
    judge.add_argument("--output", type=str, required=True, metavar="DIR", help="the same one again continues")
    for section in (JudgeSettings, EndpointOptions, PatienceSettings):
        add_dashed_fields(judge, section)
    return judge


def run_judge_command(command: str, args: Namespace) -> str:
    """Judge, rate or grade; returns the scores as lines for a terminal."""
    options, patience = from_dashed_fields(EndpointOptions, args), from_dashed_fields(PatienceSettings, args)
    settings = from_dashed_fields(JudgeSettings, args)
    judges = choose_judges(settings, options, patience)
    if command == "judge":
        return format_judgement(run_judge(args.answers_a, args.answers_b, judges, args.output, settings))
    if command == "rate":
        return format_ratings(run_rate(args.answers, judges, args.output, settings, args.rubric))
    return format_grades(run_grade(args.answers, args.criteria, judges, args.output, settings))
