#!/usr/bin/env bash
# HuatuoGPT-II 13B on two nodes of 8 GPUs. On each of them, from the repository root:
#   MASTER_ADDR=NODE_0 NODE_RANK=0|1 examples/huatuo2_13b/run.sh [FLAGS OF tools/train.py...]
# The same command resumes; `touch runs/huatuo2_13b/train/STOP` saves and ends it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export NNODES=${NNODES:-2}
exec "$here/../launch_node.sh" "$here/train.yaml" "$@"
