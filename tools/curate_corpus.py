#!/usr/bin/env python
"""Raw medical text to clean passages: documents.jsonl, rejected.jsonl, report.json and manifest.json."""

from __future__ import annotations

import sys

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    """Parse the command line and curate."""
    from megatron_huatuo.corpus import CurationSettings, ExecutorSettings, curate, preview_scores

    parser = argument_parser(__doc__ or "")
    parser.add_argument("--input", nargs="+", type=str, required=True, metavar="GLOB", help="files or glob patterns")
    parser.add_argument("--output", type=str, required=True, metavar="DIR",
                        help="directory to write; a failed run leaves its work in .DIR.work for the next one")  # fmt: skip
    parser.add_argument("--executor", choices=["local", "slurm", "ray"], default="local", help="where tasks run")
    parser.add_argument("--exam", nargs="*", type=str, default=[], metavar="FILE", help="check against these questions")
    parser.add_argument("--preview-scores", type=int, default=0, metavar="N",
                        help="show what --min-score would drop, with N passages on each side of it, and write nothing")  # fmt: skip
    add_dashed_fields(parser, ExecutorSettings, skip=("executor",))
    add_dashed_fields(parser, CurationSettings, skip=("exam",))
    args = parser.parse_args()
    settings = from_dashed_fields(CurationSettings, args)
    if args.preview_scores:
        print("\n".join(preview_scores(args.input, settings, args.preview_scores)))
        return
    curate(args.input, args.output, settings, from_dashed_fields(ExecutorSettings, args))


if __name__ == "__main__":
    sys.exit(main())
