#!/usr/bin/env python
"""Train a SentencePiece tokenizer on documents or conversations: tokenizer.model with its Hugging Face config."""

from __future__ import annotations

import sys

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    """Parse the command line and train."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument(
        "--input", type=str, nargs="+", required=True, metavar="FILE", help=".jsonl, .jsonl.gz or .json"
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--vocab-size", type=int, required=True, metavar="N", help="pieces, 256 bytes included")
    parser.add_argument("--max-bad-lines", type=int, default=0, metavar="N", help="bad lines to skip before stopping")
    args = parser.parse_args()

    from megatron_huatuo.index.train_tokenizer import train_tokenizer

    train_tokenizer(args.input, args.output, args.vocab_size, max_bad_lines=args.max_bad_lines)


if __name__ == "__main__":
    sys.exit(main())
