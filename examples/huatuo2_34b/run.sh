#!/usr/bin/env bash
# HuatuoGPT-II 34B on four or eight nodes of 8 GPUs. On each of them, from the repository root:
#   NNODES=4|8 MASTER_ADDR=NODE_0 NODE_RANK=0...7 examples/huatuo2_34b/run.sh [FLAGS OF tools/train.py...]
# The same command resumes; `touch runs/huatuo2_34b/train/STOP` saves and ends it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export NNODES=${NNODES:-4}
config=$here/train.yaml
if [[ $NNODES == 8 ]]; then config=$here/train_64gpu.yaml; fi
exec "$here/../launch_node.sh" "$config" "$@"
