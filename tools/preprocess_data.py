#!/usr/bin/env python
"""Turn conversations or texts (JSON Lines) into indexed token data: P.bin, P.idx and the manifest P.json."""

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
    parser.add_argument("--source", type=str, default=None, metavar="NAME", help="only records of this source")
    parser.add_argument(
        "--format",
        type=str,
        default="conversations",
        choices=("conversations", "text"),
        help="text: documents as they are, every token trained on, eos at the end (default: conversations)",
    )
    parser.add_argument(
        "--chat-format",
        type=str,
        default=None,
        choices=("huatuo", "native"),
        help="huatuo: the recipe's (default); native: the tokenizer's own chat template, system turn and thinking included",
    )
    parser.add_argument(
        "--train-on-thinking",
        type=bool | None,
        default=None,
        metavar="true|false",
        help="with native: train on what stands before </think> in an answer too (default: true)",
    )
    parser.add_argument(
        "--template-date",
        type=str | None,
        default=None,
        metavar="YYYY-MM-DD",
        help="with native: the date that templates write which ask for today's (default: today's)",
    )
    args = parser.parse_args()

    from megatron_huatuo.index.build_index import build_index
    from megatron_huatuo.index.formats.format_table import FormatSettings

    build_index(
        args.input,
        args.output_prefix,
        args.tokenizer,
        workers=args.workers,
        max_bad_lines=args.max_bad_lines,
        source=args.source,
        settings=FormatSettings(args.format, args.chat_format, args.train_on_thinking, args.template_date),
    )


if __name__ == "__main__":
    sys.exit(main())
