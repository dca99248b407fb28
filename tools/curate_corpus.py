"""Raw medical text to clean passages: documents.jsonl, rejected.jsonl, report.json and manifest.json."""

import sys

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    from megatron_huatuo.corpus import CurationSettings, curate

    parser = argument_parser(__doc__ or "")
    parser.add_argument("--input", nargs="+", type=str, required=True, metavar="GLOB", help="files or glob patterns")
    parser.add_argument(
        "--source", type=str | None, default=None, help="name of the source (default: the records' own)"
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--max-bad-lines", type=int, default=0, help="bad lines that are skipped before stopping")
    add_dashed_fields(parser, CurationSettings)
    args = parser.parse_args()
    settings = from_dashed_fields(CurationSettings, args)
    curate(args.input, args.output, source=args.source, settings=settings, max_bad_lines=args.max_bad_lines)


if __name__ == "__main__":
    sys.exit(main())
