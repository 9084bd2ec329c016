#!/bin/bash
# One sweep on the GPU nodes of a Slurm allocation: Ray starts on every node, the sweep runs on the first, Ray ends with it.
#   sbatch sweeps/cluster/slurm.sh findings --data /shared/chest_xray --out /shared/runs/findings
# Submit the same command again after a time limit or a failure: the run goes on where it stopped. Data and results lie
# where all nodes see them. CXR_RAY_VENV names a virtual environment to activate. Nodes are taken whole: "ray stop", at the
# end, ends every Ray of yours on a node.
#SBATCH --job-name=cxr_ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

# shellcheck source=/dev/null
[ -z "${CXR_RAY_VENV:-}" ] || source "$CXR_RAY_VENV/bin/activate"

RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))') # of this job, in no file
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*} # not "| head -n 1": that ends scontrol by a closed pipe, and with pipefail the job
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a node
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

srun --export=ALL ray symmetric-run \
  --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "${SLURM_CPUS_PER_TASK:-1}" \
  -- env RAY_ADDRESS="$head:$port" python -m cxr_ray.sweep "$@" --resume &
trap 'kill -TERM $!' TERM # two minutes before the limit: the sweep says how to go on, and the lock is given back
wait $! || { code=$?; wait $! || true; exit "$code"; }
