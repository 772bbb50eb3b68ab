#!/usr/bin/env bash
#SBATCH --job-name=fedlora-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Many runs in one job: the ranks are divided into groups, each run is bit-identical to the same run alone.
# usage: sbatch jobs/slurm-sweep-one-job.sh inputs/shakespeare.yaml --over method.name=fedavg,flora --over run.seed=1..5 --out runs/sweep
set -u
cd "$SLURM_SUBMIT_DIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/slurm-env.sh
. "$jobs/slurm-env.sh" "$@"
exec "$jobs/launch.sh" sweep "$@"
