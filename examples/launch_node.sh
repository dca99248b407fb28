#!/usr/bin/env bash
# Start the ranks of one node:  examples/launch_node.sh CONFIG [FLAGS OF tools/train.py...]
# or look at the machines:      examples/launch_node.sh check [FLAGS OF tools/check_cluster.py...]
#
# Run it once on every node, from the repository root, with the same command line: started again, it resumes. The
# run.sh of each example and slurm/train.sbatch call it. From the environment (docs/cluster.md has them all):
#   NNODES=1  NODE_RANK=0  MASTER_ADDR  MASTER_PORT=29500  LOCAL_ADDR  HOST_SUFFIX  GPUS_PER_NODE=8  MAX_RESTARTS=3
#   SHUTDOWN_TIMEOUT=600  RUN_ID  LOG_DIR  PYTHON
set -euo pipefail

config=${1:?"usage: launch_node.sh CONFIG [FLAGS OF tools/train.py...], or launch_node.sh check [FLAGS OF tools/check_cluster.py...]"}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nnodes=${NNODES:-1}
node_rank=${NODE_RANK:-${SLURM_NODEID:-0}}

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  if [[ -x $root/.venv/bin/python ]]; then PYTHON=$root/.venv/bin/python; fi
fi

# This checkout, whatever version of the package the interpreter or the image has installed.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# One thread a rank; overlap of tensor-parallel communication needs one connection; growing segments fragment less.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Restarted ranks of several nodes must not find the addresses of the dead in torchrun's store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}

# SIGTERM to torchrun asks the ranks to save and stop: they get that long before they are killed. By the environment:
# torch before 2.12 waits 30 s whatever it says, and its torchrun refuses the option --shutdown-timeout.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${SHUTDOWN_TIMEOUT:-600}

tool=("$root/tools/train.py" --config "$config")
if [[ $config == check ]]; then
  tool=("$root/tools/check_cluster.py")
  MAX_RESTARTS=0
fi
launcher=(--nproc-per-node "${GPUS_PER_NODE:-8}" --max-restarts "${MAX_RESTARTS:-3}")
if [[ $nnodes == 1 ]]; then
  launcher+=(--standalone)
else
  if [[ -z ${MASTER_ADDR:-} ]]; then
    echo "error: MASTER_ADDR is not set, and there are $nnodes nodes. Give every node the name of node 0." >&2
    exit 2
  fi
  master_port=${MASTER_PORT:-29500}
  is_host=false
  if [[ $node_rank == 0 ]]; then is_host=true; fi
  # One sentence now instead of torchrun's traceback in minutes.
  "$PYTHON" -c '
import socket, sys
name, port, is_host, here = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "true", socket.gethostname()
try:
    socket.getaddrinfo(name, port)
except OSError as error:
    sys.exit(f"error: {here} cannot resolve MASTER_ADDR: got {name!r} ({error.strerror}), need a name that every node "
             "knows. Give the address of node 0 instead, or add the name to /etc/hosts of this node.")
if is_host:
    both = socket.has_dualstack_ipv6()
    try:
        socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both).close()
    except OSError as error:
        sys.exit(f"error: cannot listen on MASTER_PORT of {here}: got {port} ({error.strerror}), need a free port. "
                 "Give every node another MASTER_PORT, or end what holds this one (ss -ltnp).")
' "$MASTER_ADDR" "$master_port" "$is_host" >/dev/null || exit 2
  launcher+=(--nnodes "$nnodes" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$master_port"
    --rdzv-id "${RUN_ID:-huatuo2}" --rdzv-conf "is_host=$is_host")
  # What the other nodes call this one, where its own name leads to a slower network or to none.
  if [[ -z ${LOCAL_ADDR:-} && -n ${HOST_SUFFIX:-} ]]; then
    host=$(uname -n)
    LOCAL_ADDR=${host%%.*}$HOST_SUFFIX
  fi
  if [[ -n ${LOCAL_ADDR:-} ]]; then launcher+=(--local-addr "$LOCAL_ADDR"); fi
fi
if [[ -n ${LOG_DIR:-} ]]; then # one log a rank; the first rank of the node on the console too
  mkdir -p "$LOG_DIR/node_$node_rank"
  launcher+=(--log-dir "$LOG_DIR/node_$node_rank" --tee 3 --local-ranks-filter 0)
fi

exec "$PYTHON" -m torch.distributed.run "${launcher[@]}" "${tool[@]}" "$@"
