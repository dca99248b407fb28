"""Raw medical text to clean passages: documents.jsonl, rejected.jsonl, report.json and manifest.json."""

import sys

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    from megatron_huatuo.corpus import CurationSettings, ExecutorSettings, curate

    parser = argument_parser(__doc__ or "")
    parser.add_argument("--input", nargs="+", type=str, required=True, metavar="GLOB", help="files or glob patterns")
    parser.add_argument(
        "--source", type=str | None, default=None, metavar="NAME", help="source (default: the records' own)"
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR",
                        help="directory to write; a failed run leaves its work in .DIR.work for the next one")  # fmt: skip
    parser.add_argument("--executor", choices=["local", "slurm", "ray"], default="local", help="where tasks run")
    parser.add_argument("--lexicon", type=str | None, default=None, metavar="FILE",
                        help="medical terms, one a line, or 'starter': drops what is not medical")  # fmt: skip
    parser.add_argument("--exam", nargs="*", type=str, default=[], metavar="FILE", help="check against these questions")
    parser.add_argument("--max-bad-lines", type=int, default=0, metavar="N", help="bad lines to skip before stopping")
    add_dashed_fields(parser, ExecutorSettings, skip=("executor",))
    add_dashed_fields(parser, CurationSettings)
    args = parser.parse_args()
    curate(
        args.input,
        args.output,
        source=args.source,
        settings=from_dashed_fields(CurationSettings, args),
        lexicon=args.lexicon,
        exams=args.exam,
        max_bad_lines=args.max_bad_lines,
        execution=from_dashed_fields(ExecutorSettings, args),
    )


if __name__ == "__main__":
    sys.exit(main())
