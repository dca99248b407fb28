#!/usr/bin/env python
"""Register an index of stock Megatron, P.bin and P.idx without modes, as raw text: writes the manifest P.json beside it.

Assumed, and said in the manifest: every token is trained on, the ids are those of the tokenizer named, and a document ends
where the index ends one. Checked: ids below the vocabulary, documents that end with the end-of-document id.
"""

from __future__ import annotations

import sys

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error


@exit_on_error
def main() -> None:
    """Parse the command line and register one index."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument(
        "--input-prefix", type=str, required=True, metavar="P", help="reads P.bin, P.idx, writes P.json"
    )
    parser.add_argument(
        "--tokenizer", type=str, required=True, metavar="PATH", help="that the ids are of: a file or its directory"
    )
    parser.add_argument(
        "--without-eos", action="store_true", help="accept documents without an end-of-document id at their end"
    )
    args = parser.parse_args()

    from megatron_huatuo.index.register import register_index

    register_index(args.input_prefix, args.tokenizer, without_eos=args.without_eos)


if __name__ == "__main__":
    sys.exit(main())
