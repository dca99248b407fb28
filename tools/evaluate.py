#!/usr/bin/env python
"""Score models: exams of multiple-choice questions, their comparison and tables, and answers compared by a judge."""

from __future__ import annotations

import sys
from dataclasses import replace

from jsonargparse import ArgumentParser, Namespace

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.evaluate.compare import format_comparison, run_compare
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import EndpointOptions, GenerationSettings, ModelEndpoint, refuse_ignored
from megatron_huatuo.evaluate.judging.judge import format_judgement, run_judge
from megatron_huatuo.evaluate.score import format_scores
from megatron_huatuo.evaluate.score_tables import BENCHMARKS, TableSettings, run_table
from megatron_huatuo.llm.endpoint_settings import PatienceSettings


def _parser() -> ArgumentParser:
    exam = argument_parser("Ask exam questions and score the replies: replies.jsonl, scores.json, manifest.json.")
    exam.add_argument("--model", type=str, required=True, metavar="HF_DIR", help="directory, or name at --base-url")
    exam.add_argument("--base-url", type=str, metavar="URL", help="OpenAI-compatible endpoint, up to /v1")
    exam.add_argument("--questions", type=str, nargs="+", required=True, metavar="FILE", help=".jsonl or .json")
    exam.add_argument("--trust-remote-code", action="store_true", help="run Python code of the directory")
    exam.add_argument("--subset", type=str, nargs="+", default=(), metavar="NAME", help="only these parts of the exam")
    exam.add_argument("--few-shot-from", type=str, nargs="+", default=(), metavar="FILE", help="files of the examples")
    add_dashed_fields(exam, ExamSettings, skip=("subset", "few_shot_from", "trust_remote_code"))
    add_dashed_fields(exam, GenerationSettings)
    judge = argument_parser("Have a model compare two files of answers, in both orders: verdicts.jsonl, scores.json.")
    judge.add_argument("--answers-a", type=str, required=True, metavar="FILE", help="answers of model A")
    judge.add_argument("--answers-b", type=str, required=True, metavar="FILE", help="answers of model B")
    judge.add_argument("--base-url", type=str, required=True, metavar="URL", help="the judge's endpoint, up to /v1")
    judge.add_argument("--model", type=str, required=True, metavar="NAME", help="the judge's name there")
    judge.add_argument("--max-failed", type=int, default=0, metavar="N", help="requests that may stay unanswered")
    judge.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="longest reply of the judge")
    compare = argument_parser("Compare exams of several models on the same questions: comparison.json, manifest.json.")
    compare.add_argument("--results", type=str, nargs="+", required=True, metavar="DIR", help="outputs of exam")
    compare.add_argument("--output", type=str, required=True, metavar="DIR", help="directory of the comparison")
    table = argument_parser("Print the paper's tables from exams, the published rows beside them.")
    table.add_argument("--results", type=str, nargs="+", required=True, metavar="DIR", help="outputs of exam")
    table.add_argument(
        "--exams", type=str, nargs="+", default=BENCHMARKS, metavar="NAME", help="columns, as in --format"
    )
    table.add_argument("--output", type=str | None, default=None, metavar="FILE", help="write it to a .md or .csv, too")
    add_dashed_fields(table, TableSettings)
    for command in (exam, judge):
        command.add_argument("--output", type=str, required=True, metavar="DIR", help="the same one again continues")
        add_dashed_fields(command, EndpointOptions)
        add_dashed_fields(command, PatienceSettings)
    parser = argument_parser(__doc__ or "")
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("exam", exam, help=exam.description)
    commands.add_subcommand("judge", judge, help=judge.description)
    commands.add_subcommand("compare", compare, help=compare.description)
    commands.add_subcommand("table", table, help=table.description)
    return parser


def _endpoint(args: Namespace) -> ModelEndpoint:
    options, patience = from_dashed_fields(EndpointOptions, args), from_dashed_fields(PatienceSettings, args)
    return ModelEndpoint(args.base_url, args.model, options, patience)


def _exam(args: Namespace) -> None:
    endpoint = _endpoint(args)
    generation = from_dashed_fields(GenerationSettings, args)
    if args.base_url is None:
        refuse_ignored([endpoint.options, endpoint.patience], "without --base-url")
    else:
        own = {name: getattr(GenerationSettings, name) for name in ("max_new_tokens", "temperature")}
        refuse_ignored([replace(generation, **own)], "with --base-url")
    scores = run_exam(
        args.model if args.base_url is None else endpoint,
        args.questions,
        args.output,
        from_dashed_fields(ExamSettings, args),
        generation,
    )
    print(format_scores(scores))


def _judge(args: Namespace) -> None:
    scores = run_judge(
        answers_a=args.answers_a,
        answers_b=args.answers_b,
        judge=_endpoint(args),
        output=args.output,
        generation=GenerationSettings(max_new_tokens=args.max_new_tokens),
        max_failed=args.max_failed,
    )
    print(format_judgement(scores))


def _compare(args: Namespace) -> None:
    print(format_comparison(run_compare(args.results, args.output)))


def _table(args: Namespace) -> None:
    print(run_table(args.results, from_dashed_fields(TableSettings, args), args.exams, args.output))


@exit_on_error
def main() -> None:
    """Parse the command line and run one of the commands."""
    args = _parser().parse_args()
    {"exam": _exam, "judge": _judge, "compare": _compare, "table": _table}[args.command](args[args.command])


if __name__ == "__main__":
    sys.exit(main())
