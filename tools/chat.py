#!/usr/bin/env python
"""Talk with a model: reads questions line by line, keeps the history, shows the answer as it comes."""

from __future__ import annotations

import io
import sys

from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.evaluate.generate import ReplySettings


@exit_on_error
def main() -> None:
    """Parse the command line and chat."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--model", type=str, required=True, metavar="HF_DIR", help="Hugging Face directory")
    parser.add_argument("--question", type=str, default=None, metavar="TEXT", help="answer this one and exit")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code of the directory")
    add_dashed_fields(parser, ReplySettings)
    args = parser.parse_args()

    from megatron_huatuo.evaluate.chat import run_chat

    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # also where the locale is C
    run_chat(
        args.model,
        sys.stdin,
        sys.stdout,
        question=args.question,
        settings=from_dashed_fields(ReplySettings, args),
        trust_remote_code=args.trust_remote_code,
        prompt="\n> " if sys.stdin.isatty() else "",
    )


if __name__ == "__main__":
    sys.exit(main())
