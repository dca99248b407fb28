#!/usr/bin/env python
"""Score models: exams of multiple-choice questions, their comparison and tables, and answers that other models judge."""

from __future__ import annotations

import sys
from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.evaluate.compare import format_comparison, run_compare
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.free_answers import ANSWERS, AnswerSettings, run_answers
from megatron_huatuo.evaluate.generate import GenerationSettings
from megatron_huatuo.evaluate.harness_tasks import export_tasks
from megatron_huatuo.evaluate.judging.judge_commands import judge_parsers, run_judge_command
from megatron_huatuo.evaluate.model_flags import asking_parser, model_of
from megatron_huatuo.evaluate.overlap import OverlapSettings, format_overlap
from megatron_huatuo.evaluate.score import format_scores
from megatron_huatuo.evaluate.score_tables import BENCHMARKS, TableSettings, run_table

_NOT_EXPORTED = ("scoring", "votes", "normalise", "trust_remote_code", "max_failed")


def _add_exam_fields(parser: ArgumentParser, skip: tuple[str, ...]) -> None:
    parser.add_argument(
        "--subset", type=str, nargs="+", default=(), metavar="NAME", help="only these parts of the exam"
    )
    parser.add_argument(
        "--few-shot-from", type=str, nargs="+", default=(), metavar="FILE", help="files of the examples"
    )
    add_dashed_fields(parser, ExamSettings, skip=("subset", "few_shot_from", *skip))


def _exam_parser() -> ArgumentParser:
    exam = asking_parser(
        "Ask exam questions and score the replies: replies.jsonl, scores.json, manifest.json.", ".jsonl, .json or .csv"
    )
    _add_exam_fields(exam, ("trust_remote_code",))
    exam.add_argument("--overlap-index", type=str, nargs="+", default=(), metavar="PREFIX", help="indexes or blends")
    add_dashed_fields(exam, OverlapSettings, skip=("overlap_index",))
    return exam


def _answer_parser() -> ArgumentParser:
    answer = asking_parser(
        "Have a model answer open questions, for judge, rate and grade: answers.jsonl.", ".jsonl or .json"
    )
    add_dashed_fields(answer, AnswerSettings, skip=("trust_remote_code",))
    return answer


def _tasks_parser() -> ArgumentParser:
    tasks = argument_parser("Write an exam as tasks of lm-evaluation-harness: YAML over local files.")
    tasks.add_argument("--questions", type=str, nargs="+", required=True, metavar="FILE", help=".jsonl, .json or .csv")
    tasks.add_argument("--output", type=str, required=True, metavar="DIR", help="for lm_eval --include_path")
    tasks.add_argument("--max-new-tokens", type=int, default=512, help="longest generated reply, in tokens")
    _add_exam_fields(tasks, _NOT_EXPORTED)
    return tasks


def _results_parser(description: str) -> ArgumentParser:
    results = argument_parser(description)
    results.add_argument("--results", type=str, nargs="+", required=True, metavar="DIR", help="outputs of exam")
    return results


def _parser() -> ArgumentParser:
    compare = _results_parser("Compare exams of several models on the same questions: comparison.json.")
    compare.add_argument("--output", type=str, required=True, metavar="DIR", help="of the comparison")
    table = _results_parser("Print the paper's tables from exams, the published rows beside them.")
    table.add_argument("--output", type=str | None, default=None, metavar="FILE", help=".md or .csv")
    table.add_argument("--exams", type=str, nargs="+", default=list(BENCHMARKS), metavar="NAME", help="the columns")
    add_dashed_fields(table, TableSettings)
    parsers = {"exam": _exam_parser(), "answer": _answer_parser(), **judge_parsers()}
    parsers |= {"compare": compare, "export-tasks": _tasks_parser(), "table": table}
    parser = argument_parser(__doc__ or "")
    commands = parser.add_subcommands(dest="command")
    for name, command in parsers.items():
        commands.add_subcommand(name, command, help=command.description)
    return parser


def _answer(args: Namespace) -> str:
    generation, settings = from_dashed_fields(GenerationSettings, args), from_dashed_fields(AnswerSettings, args)
    count = run_answers(model_of(args, generation), args.questions, args.output, settings, generation)
    return f"{count} answers: {args.output}/{ANSWERS}"


def _exam(args: Namespace) -> str:
    generation = from_dashed_fields(GenerationSettings, args)
    model = model_of(args, generation)
    settings, overlap = from_dashed_fields(ExamSettings, args), from_dashed_fields(OverlapSettings, args)
    scores = run_exam(model, args.questions, args.output, settings, generation, overlap)
    return "\n".join([format_scores(scores), *([format_overlap(scores["overlap"])] if "overlap" in scores else [])])


def _export_tasks(args: Namespace) -> list[str]:
    given = {entry.name: args[entry.name] for entry in fields(ExamSettings) if entry.name not in _NOT_EXPORTED}
    settings = ExamSettings(**given, scoring="loglikelihood")
    return export_tasks(args.questions, args.output, settings, args.max_new_tokens)


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
        print(run_judge_command(command, args))


if __name__ == "__main__":
    sys.exit(main())
