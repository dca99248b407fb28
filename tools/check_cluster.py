#!/usr/bin/env python3
"""Check machines before a run, on all its ranks:  torchrun --nproc-per-node N … tools/check_cluster.py --directory DIR

Ranks and devices, equal versions, clocks, a shared file system with atomic renames, attention that keeps documents apart,
bandwidth of all-reduce, of all-gather and between nodes. On several nodes examples/launch_node.sh starts it: launch_node.sh check --directory DIR. Rank 0 prints a line a check and READY or NOT READY; the exit code is 0 or 1.
"""

from __future__ import annotations

import os
import sys

from megatron_huatuo.cluster.cluster_settings import ClusterSettings
from megatron_huatuo.config import add_dashed_fields, argument_parser, from_dashed_fields
from megatron_huatuo.errors import exit_on_error
from megatron_huatuo.log import silence_known_warnings


@exit_on_error
def main() -> int:
    """Parse the command line, check, print on rank 0."""
    parser = argument_parser(__doc__ or "")
    add_dashed_fields(parser, ClusterSettings)
    settings = from_dashed_fields(ClusterSettings, parser.parse_args())

    silence_known_warnings()
    from megatron_huatuo.cluster.check import check_cluster, format_findings, is_ready

    findings = check_cluster(settings)
    if os.environ.get("RANK", "0") == "0":
        print(format_findings(findings))
    return 0 if is_ready(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
