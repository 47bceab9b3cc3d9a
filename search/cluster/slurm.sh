#!/usr/bin/env bash
# A sweep as a Slurm job: Ray on every node of the allocation, the driver on the first. Replace what is in CAPITALS.
#
#   sbatch slurm.sh          # and again, to go on where the time limit has stopped it
#
#SBATCH --job-name=distune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --no-kill
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
# --no-kill: a lost node costs its trials at most 30 s of training each, not the job. --signal: two minutes before the
# time limit the sweep stops at the next report of each trial, and is then ready to go on.
set -euo pipefail

shared=${DISTUNE_SHARED:-/shared/YOUR-GROUP/distune} # a folder that all nodes see, with a virtual environment in it
storage=$shared/sweeps
# shellcheck disable=SC1091
source "$shared/venv/bin/activate"
mkdir -p "${TMPDIR:-/tmp}/distune-$SLURM_JOB_ID" && cd "$_" # run folders lie on the node's own disk

# Ray's token, for this job alone and its owner alone.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$shared/token-$SLURM_JOB_ID
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
leave() {
  jobs -p | xargs --no-run-if-empty kill 2>/dev/null || true
  wait || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap leave EXIT

# The first node is the head; its ports follow from the job's number, so that jobs do not meet.
port=$((20000 + SLURM_JOB_ID % 5000))
RAY_ADDRESS=$(python -c 'import ray.util; print(ray.util.get_node_ip_address())'):$port
export RAY_ADDRESS SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --nodes=1 --ntasks=1 --relative=0 ray start --block --head --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" \
  --dashboard-host=127.0.0.1 --dashboard-port=$((port + 5000)) --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
timeout 120 bash -c 'until ray status &>/dev/null; do sleep 1; done'
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --relative=1 \
    --no-kill --kill-on-bad-exit=0 ray start --block --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi

if [[ -e $storage/first ]]; then
  distune resume "$storage/first" --address auto --out first &
else
  distune sweep mlp-ensemble --address auto --storage "$storage" --gpus-per-trial 0.5 --max-concurrent 32 --out first &
fi
driver=$!
trap 'kill -TERM "$driver"; wait "$driver"' TERM
wait "$driver"
cp -r . "$shared/finished-$SLURM_JOB_ID"
