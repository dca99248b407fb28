#!/usr/bin/env python3
"""Show what the project has written, for a person to read.

PATH: a directory of any stage (corpus, unified, index, blend, run, checkpoint, Hugging Face model, evaluation), an index
prefix P, or one file: .jsonl, .json, .npy, .bin, .idx, .safetensors, .distcp. With --number N: line N (from 1) of JSON
Lines, document N of an index or row N of a blend, decoded, with what is trained on marked. With --trace too, the way back
of each of its documents: pair, how it was made, passage, source file and byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_huatuo.config import argument_parser
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.inspect.describe import describe, manifest_of
from megatron_huatuo.inspect.show_manifest import join
from megatron_huatuo.storage.manifest import read_json, verify_files


@exit_on_error
def main() -> None:
    """Parse the command line, verify if asked to, print."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("path", type=str, metavar="PATH", help="what to show")
    parser.add_argument("--number", type=int | None, default=None, metavar="N", help="one line, document or row")
    parser.add_argument("--verify", action="store_true", help="also check the sha256 of every file of the manifest")
    parser.add_argument("--trace", action="store_true", help="with --number: from a row back to the source files")
    args = parser.parse_args()
    print(join(describe(Path(args.path), args.number, trace=args.trace)))
    if args.verify:
        manifest = manifest_of(Path(args.path))
        verify_files(manifest.parent, read_json(manifest))
        print(f"verified: every file of {manifest} has its size and sha256")


if __name__ == "__main__":
    sys.exit(main())
