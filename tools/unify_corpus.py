"""Passages to question-answer pairs: conversations.jsonl, rejected.jsonl, ledger.json, report.json, manifest.json."""

import sys

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error

STOPPED_BY_BUDGET = 3


@exit_on_error
def main() -> int:
    from megatron_huatuo.execution import ExecutorSettings
    from megatron_huatuo.unify import CheckSettings, PatienceSettings, QualitySettings, SamplingSettings, unify

    parser = argument_parser(__doc__ or "")
    parser.add_argument("--input", nargs="*", type=str, default=[], metavar="FILE", help="files of documents")
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--backend", choices=["template", "openai"], default="template", help="who writes the pairs")
    parser.add_argument("--base-url", type=str | None, default=None, metavar="URL", help="endpoint, up to /v1")
    parser.add_argument("--model", type=str | None, default=None, metavar="NAME", help="name of the model")
    parser.add_argument("--api-key-env", type=str | None, default=None, metavar="VAR", help="variable with the API key")
    parser.add_argument("--language", choices=["zh", "en"], default=None, help="of the pairs (default: the passage's)")
    parser.add_argument("--max-concurrency", type=int, default=64, metavar="N", help="requests in flight in a task")
    parser.add_argument("--budget-usd", type=float | None, default=None, metavar="X", help="stop before spending more")
    parser.add_argument("--prices", type=str | None, default=None, metavar="FILE", help="YAML price table")
    parser.add_argument("--prompts", nargs="*", type=str, default=[], metavar="FILE", help="YAML prompts of your own")
    parser.add_argument(
        "--request-options", type=str | None, default=None, metavar="FILE", help="YAML or JSON, further request fields"
    )
    parser.add_argument(
        "--styles",
        nargs="*",
        type=str,
        default=[],
        metavar="NAME[=WEIGHT]",
        help="drawn for each passage: question-answer (default), several-questions, case, patient-explanation, table, dialogue, reading-comprehension, or your own",
    )
    parser.add_argument(
        "--from-model",
        type=int,
        default=0,
        metavar="N",
        help="instead of --input: N conversations the model writes of itself",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws of --styles and --from-model")
    parser.add_argument("--preview", type=int, default=0, metavar="N", help="show N pairs and write nothing")
    parser.add_argument("--pairs", action="store_true", help="input files hold pairs, dialogues and queries")
    parser.add_argument("--gate-pairs", action="store_true", help="pairs must pass the quality gates too")
    parser.add_argument("--max-bad-lines", type=int, default=0, metavar="N", help="bad lines to skip before stopping")
    parser.add_argument(
        "--documents-per-task", type=int, default=20_000, metavar="N", help="lines of a file in one task"
    )
    parser.add_argument("--executor", choices=["local", "slurm", "ray"], default="local", help="where tasks run")
    add_dashed_fields(parser, ExecutorSettings, skip=("executor",))
    sections = {"quality": QualitySettings, "sampling": SamplingSettings, "patience": PatienceSettings,
                "check": CheckSettings}  # fmt: skip
    for section in sections.values():
        add_dashed_fields(parser, section)
    args = parser.parse_args()
    mirrored = ("backend", "base_url", "model", "api_key_env", "language", "max_concurrency", "budget_usd", "prices",
                "prompts", "request_options", "styles", "from_model", "seed", "preview", "pairs", "gate_pairs", "max_bad_lines", "documents_per_task")  # fmt: skip
    report = unify(
        args.input,
        args.output,
        execution=from_dashed_fields(ExecutorSettings, args),
        **{name: args[name] for name in mirrored},
        **{name: from_dashed_fields(section, args) for name, section in sections.items()},
    )
    return STOPPED_BY_BUDGET if report.get("not_reached") else 0


if __name__ == "__main__":
    sys.exit(main())
