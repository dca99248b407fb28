#!/usr/bin/env python
"""Score models: exams of multiple-choice questions, their comparison and tables, and answers that other models judge."""

from __future__ import annotations

import sys
from dataclasses import fields, replace

from jsonargparse import ArgumentParser, Namespace

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.evaluate.compare import format_comparison, run_compare
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.free_answers import ANSWERS, AnswerSettings, run_answers
from megatron_huatuo.evaluate.generate import EndpointOptions, GenerationSettings, ModelEndpoint, refuse_ignored
from megatron_huatuo.evaluate.harness_tasks import export_tasks
from megatron_huatuo.evaluate.judging.grade import format_grades, run_grade
from megatron_huatuo.evaluate.judging.judge import format_judgement, run_judge
from megatron_huatuo.evaluate.judging.panel import JudgeSettings, choose_judges
from megatron_huatuo.evaluate.judging.rate import format_ratings, run_rate
from megatron_huatuo.evaluate.overlap import OverlapSettings, format_overlap
from megatron_huatuo.evaluate.score import format_scores
from megatron_huatuo.evaluate.score_tables import BENCHMARKS, TableSettings, run_table
from megatron_huatuo.llm.endpoint_settings import PatienceSettings

_NOT_EXPORTED = ("scoring", "votes", "normalise", "trust_remote_code", "max_failed")


def _exam_parser() -> ArgumentParser:
    exam = argument_parser("Ask exam questions and score the replies: replies.jsonl, scores.json, manifest.json.")
    exam.add_argument("--model", type=str, required=True, metavar="HF_DIR", help="directory, or name at --base-url")
    exam.add_argument("--base-url", type=str, metavar="URL", help="OpenAI-compatible endpoint, up to /v1")
    exam.add_argument("--questions", type=str, nargs="+", required=True, metavar="FILE", help=".jsonl, .json or .csv")
    exam.add_argument("--output", type=str, required=True, metavar="DIR", help="the same one again continues")
    exam.add_argument("--trust-remote-code", action="store_true", help="run Python code of the directory")
    exam.add_argument("--subset", type=str, nargs="+", default=(), metavar="NAME", help="only these parts of the exam")
    exam.add_argument("--few-shot-from", type=str, nargs="+", default=(), metavar="FILE", help="files of the examples")
    add_dashed_fields(exam, ExamSettings, skip=("subset", "few_shot_from", "trust_remote_code"))
    exam.add_argument("--overlap-index", type=str, nargs="+", default=(), metavar="PREFIX", help="indexes or blends")
    add_dashed_fields(exam, OverlapSettings, skip=("overlap_index",))
    add_dashed_fields(exam, GenerationSettings)
    return exam


def _answer_parser() -> ArgumentParser:
    answer = argument_parser("Have a model answer open questions, for judge, rate and grade: answers.jsonl.")
    answer.add_argument("--model", type=str, required=True, metavar="HF_DIR", help="directory, or name at --base-url")
    answer.add_argument("--base-url", type=str, metavar="URL", help="OpenAI-compatible endpoint, up to /v1")
    answer.add_argument("--questions", type=str, nargs="+", required=True, metavar="FILE", help=".jsonl or .json")
    answer.add_argument("--output", type=str, required=True, metavar="DIR", help="the same one again continues")
    answer.add_argument("--trust-remote-code", action="store_true", help="run Python code of the directory")
    add_dashed_fields(answer, AnswerSettings, skip=("trust_remote_code",))
    add_dashed_fields(answer, GenerationSettings)
    return answer


def _tasks_parser() -> ArgumentParser:
    tasks = argument_parser("Write an exam as tasks of lm-evaluation-harness: YAML over local files.")
    tasks.add_argument("--questions", type=str, nargs="+", required=True, metavar="FILE", help=".jsonl, .json or .csv")
    tasks.add_argument("--output", type=str, required=True, metavar="DIR", help="for lm_eval --include_path")
    tasks.add_argument("--subset", type=str, nargs="+", default=(), metavar="NAME", help="only these parts of the exam")
    tasks.add_argument("--few-shot-from", type=str, nargs="+", default=(), metavar="FILE", help="files of the examples")
    tasks.add_argument("--max-new-tokens", type=int, default=512, help="longest generated reply, in tokens")
    add_dashed_fields(tasks, ExamSettings, skip=("subset", "few_shot_from", *_NOT_EXPORTED))
    return tasks


def _judge_parser(description: str, files: dict[str, str]) -> ArgumentParser:
    judge = argument_parser(description)
    for flag, what in files.items():
        judge.add_argument(flag, type=str, required=True, metavar="FILE", help=what)
    judge.add_argument("--output", type=str, required=True, metavar="DIR", help="the same one again continues")
    add_dashed_fields(judge, JudgeSettings)
    return judge


def _parser() -> ArgumentParser:
    answers = {"--answers-a": "answers of model A", "--answers-b": "answers of model B"}
    parsers = {
        "exam": _exam_parser(),
        "answer": _answer_parser(),
        "judge": _judge_parser("Have a model compare two files of answers, in both orders: verdicts.jsonl.", answers),
        "rate": _judge_parser("Have answers rated from 1 to 10 by a rubric: ratings.jsonl.", {"--answers": "answers"}),
        "grade": _judge_parser(
            "Have each criterion of each answer graded, with points: grades.jsonl.",
            {"--answers": "answers", "--criteria": "criteria with points, as in HealthBench"},
        ),
        "compare": argument_parser("Compare exams of several models on the same questions: comparison.json."),
        "export-tasks": _tasks_parser(),
        "table": argument_parser("Print the paper's tables from exams, the published rows beside them."),
    }
    parsers["rate"].add_argument(
        "--rubric", type=str, default="auto", metavar="FILE", help="auto, zh, en or a YAML file"
    )
    for name in ("exam", "answer", "judge", "rate", "grade"):
        add_dashed_fields(parsers[name], EndpointOptions)
        add_dashed_fields(parsers[name], PatienceSettings)
    for name in ("compare", "table"):
        parsers[name].add_argument(
            "--results", type=str, nargs="+", required=True, metavar="DIR", help="outputs of exam"
        )
    parsers["compare"].add_argument("--output", type=str, required=True, metavar="DIR", help="of the comparison")
    parsers["table"].add_argument("--output", type=str | None, default=None, metavar="FILE", help=".md or .csv")
    parsers["table"].add_argument(
        "--exams", type=str, nargs="+", default=BENCHMARKS, metavar="NAME", help="the columns"
    )
    add_dashed_fields(parsers["table"], TableSettings)
    parser = argument_parser(__doc__ or "")
    commands = parser.add_subcommands(dest="command")
    for name, command in parsers.items():
        commands.add_subcommand(name, command, help=command.description)
    return parser


def _model(args: Namespace, generation: GenerationSettings) -> str | ModelEndpoint:
    """The directory or the endpoint; settings of the other one are refused."""
    options, patience = from_dashed_fields(EndpointOptions, args), from_dashed_fields(PatienceSettings, args)
    if args.base_url is None:
        refuse_ignored([options, patience], "without --base-url")
    else:
        own = {name: getattr(GenerationSettings, name) for name in ("max_new_tokens", "temperature")}
        refuse_ignored([replace(generation, **own)], "with --base-url")
    return args.model if args.base_url is None else ModelEndpoint(args.base_url, args.model, options, patience)


def _answer(args: Namespace) -> str:
    generation, settings = from_dashed_fields(GenerationSettings, args), from_dashed_fields(AnswerSettings, args)
    count = run_answers(_model(args, generation), args.questions, args.output, settings, generation)
    return f"{count} answers: {args.output}/{ANSWERS}"


def _exam(args: Namespace) -> str:
    generation = from_dashed_fields(GenerationSettings, args)
    model = _model(args, generation)
    settings = from_dashed_fields(ExamSettings, args)
    overlap = from_dashed_fields(OverlapSettings, args)
    scores = run_exam(model, args.questions, args.output, settings, generation, overlap)
    return "\n".join([format_scores(scores), *([format_overlap(scores["overlap"])] if "overlap" in scores else [])])


def _export_tasks(args: Namespace) -> list[str]:
    given = {entry.name: args[entry.name] for entry in fields(ExamSettings) if entry.name not in _NOT_EXPORTED}
    settings = ExamSettings(**given, scoring="loglikelihood")
    return export_tasks(args.questions, args.output, settings, args.max_new_tokens)


def _judged(command: str, args: Namespace) -> str:
    options, patience = from_dashed_fields(EndpointOptions, args), from_dashed_fields(PatienceSettings, args)
    settings = from_dashed_fields(JudgeSettings, args)
    judges = choose_judges(settings, options, patience)
    if command == "judge":
        return format_judgement(run_judge(args.answers_a, args.answers_b, judges, args.output, settings))
    if command == "rate":
        return format_ratings(run_rate(args.answers, judges, args.output, settings, args.rubric))
    return format_grades(run_grade(args.answers, args.criteria, judges, args.output, settings))


@exit_on_error
def main() -> None:
    """Parse the command line and run one of the commands."""
    parsed = _parser().parse_args()
    command, args = parsed.command, parsed[parsed.command]
    if command == "exam":
        print(_exam(args))
    elif command == "compare":
        print(format_comparison(run_compare(args.results, args.output)))
    elif command == "answer":
        print(_answer(args))
    elif command == "export-tasks":
        print("\n".join(_export_tasks(args)))
    elif command == "table":
        print(run_table(args.results, from_dashed_fields(TableSettings, args), args.exams, args.output))
    else:
        print(_judged(command, args))


if __name__ == "__main__":
    sys.exit(main())
