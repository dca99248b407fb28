#!/usr/bin/env bash
# Start the ranks of one node:  examples/launch_node.sh CONFIG [FLAGS OF tools/train.py...]
#
# Run it once on every node, from the repository root, with the same command line: started again, it resumes. The
# run.sh of each example and slurm/train.sbatch call it. From the environment (docs/cluster.md has them all):
#   NNODES=1  NODE_RANK=0  MASTER_ADDR  MASTER_PORT=29500  GPUS_PER_NODE=8  MAX_RESTARTS=3  SHUTDOWN_TIMEOUT=600  RUN_ID
#   LOG_DIR  PYTHON
set -euo pipefail

config=${1:?"usage: launch_node.sh CONFIG [FLAGS OF tools/train.py...]"}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nnodes=${NNODES:-1}
node_rank=${NODE_RANK:-${SLURM_NODEID:-0}}

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  if [[ -x $root/.venv/bin/python ]]; then PYTHON=$root/.venv/bin/python; fi
fi

# One thread a rank; overlap of tensor-parallel communication needs one connection; growing segments fragment less.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Restarted ranks of several nodes must not find the addresses of the dead in torchrun's store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}

# SIGTERM to torchrun asks the ranks to save and stop: they get that long before they are killed.
launcher=(--nproc-per-node "${GPUS_PER_NODE:-8}" --max-restarts "${MAX_RESTARTS:-3}"
  --shutdown-timeout "${SHUTDOWN_TIMEOUT:-600}")
if [[ $nnodes == 1 ]]; then
  launcher+=(--standalone)
else
  if [[ -z ${MASTER_ADDR:-} ]]; then
    echo "error: MASTER_ADDR is not set, and there are $nnodes nodes. Give every node the name of node 0." >&2
    exit 2
  fi
  is_host=false
  if [[ $node_rank == 0 ]]; then is_host=true; fi
  launcher+=(--nnodes "$nnodes" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}"
    --rdzv-id "${RUN_ID:-huatuo2}" --rdzv-conf "is_host=$is_host")
fi
if [[ -n ${LOG_DIR:-} ]]; then # one log a rank; the first rank of the node on the console too
  mkdir -p "$LOG_DIR/node_$node_rank"
  launcher+=(--log-dir "$LOG_DIR/node_$node_rank" --tee 3 --local-ranks-filter 0)
fi

exec "$PYTHON" -m torch.distributed.run "${launcher[@]}" "$root/tools/train.py" --config "$config" "$@"
