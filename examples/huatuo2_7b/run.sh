#!/usr/bin/env bash
# HuatuoGPT-II 7B on one node of 8 GPUs:  examples/huatuo2_7b/run.sh [FLAGS OF tools/train.py...]
# From the repository root. The same command resumes; `touch runs/huatuo2_7b/train/STOP` saves and ends it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "$here/../launch_node.sh" "$here/train.yaml" "$@"
