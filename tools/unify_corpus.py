"""Passages to question-answer pairs: conversations.jsonl, rejected.jsonl, ledger.json, report.json, manifest.json."""

import sys

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    from megatron_huatuo.unify import UnificationSettings, unify

    parser = argument_parser(__doc__ or "")
    parser.add_argument("--input", nargs="+", type=str, required=True, metavar="FILE", help="files of documents")
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--backend", choices=["template"], default="template", help="who writes the pairs")
    parser.add_argument("--max-concurrency", type=int, default=64, help="documents in flight")
    parser.add_argument("--max-bad-lines", type=int, default=0, help="bad lines that are skipped before stopping")
    add_dashed_fields(parser, UnificationSettings)
    args = parser.parse_args()
    unify(
        args.input,
        args.output,
        settings=from_dashed_fields(UnificationSettings, args),
        max_concurrency=args.max_concurrency,
        max_bad_lines=args.max_bad_lines,
    )


if __name__ == "__main__":
    sys.exit(main())
