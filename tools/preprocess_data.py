#!/usr/bin/env python
"""Turn conversations (JSON Lines) into indexed token data: P.bin, P.idx and the manifest P.json."""

from __future__ import annotations

import sys

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    """Parse the command line and build one index."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument(
        "--input", type=str, nargs="+", required=True, metavar="FILE", help=".jsonl, .jsonl.gz or .json"
    )
    parser.add_argument("--output-prefix", type=str, required=True, metavar="P", help="writes P.bin, P.idx, P.json")
    parser.add_argument(
        "--tokenizer",
        type=str,
        required=True,
        metavar="PATH",
        help="tokenizer.model, tokenizer.json or their directory",
    )
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--max-bad-lines", type=int, default=0, metavar="N", help="bad lines to skip before stopping")
    parser.add_argument("--source", type=str, default=None, metavar="NAME", help="only conversations of this source")
    args = parser.parse_args()

    from megatron_huatuo.index.build import build_index

    build_index(
        args.input,
        args.output_prefix,
        args.tokenizer,
        workers=args.workers,
        max_bad_lines=args.max_bad_lines,
        source=args.source,
    )


if __name__ == "__main__":
    sys.exit(main())
