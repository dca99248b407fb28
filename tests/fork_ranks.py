"""`python fork_ranks.py RANKS TOOL ARGUMENT...`: a tool on several ranks, forked from one process that has loaded what they need.

For tests of what starts launchers: torchrun loads torch and megatron-core once for each rank. Ends with 1 when a rank did.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading

import torch._dynamo

import megatron_huatuo.train.loop  # noqa: F401
from tests.ports import free_port


def main() -> int:
    ranks, port = int(sys.argv[1]), free_port()
    os.environ.update(
        WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    assert threading.active_count() == 1, "a fork would leave threads behind"
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            torch.set_num_threads(1)
            sys.argv = sys.argv[2:]
            runpy.run_path(sys.argv[0], run_name="__main__")
            return 0
        children.append(child)
    return int(any(os.waitpid(child, 0)[1] for child in children))


if __name__ == "__main__":
    sys.exit(main())
