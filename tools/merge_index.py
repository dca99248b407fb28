#!/usr/bin/env python
"""Join indexes that were built apart, in order, into one: P.bin, P.idx, P.origin.npy and the manifest P.json."""

from __future__ import annotations

import sys

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    """Parse the command line and merge."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--input", type=str, nargs="+", required=True, metavar="P", help="prefixes, in order")
    parser.add_argument("--output-prefix", type=str, required=True, metavar="P", help="prefix of the merged index")
    args = parser.parse_args()

    from megatron_huatuo.index.merge import merge_indexes

    merge_indexes(args.input, args.output_prefix)


if __name__ == "__main__":
    sys.exit(main())
