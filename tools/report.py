#!/usr/bin/env python3
"""One self-contained HTML page about a run: data, mixture, losses, throughput, exams, and how to repeat it."""

from __future__ import annotations

import sys

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    """Parse the command line and write the page."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("run_dir", type=str, metavar="RUN_DIR", help="training run, finished or not")
    parser.add_argument("--output", type=str, required=True, metavar="FILE.html", help="the page to write")
    parser.add_argument(
        "--hf", type=str | None, default=None, metavar="DIR", help="exported model, for its parity figures"
    )
    parser.add_argument("--evaluation", type=str, nargs="+", default=[], metavar="DIR", help="results of evaluate.py")
    args = parser.parse_args()

    from megatron_huatuo.inspect.report_page import write_report

    print(f"report: {write_report(args.run_dir, args.output, hf=args.hf, evaluations=args.evaluation)}")


if __name__ == "__main__":
    sys.exit(main())
