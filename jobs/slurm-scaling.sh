#!/usr/bin/env bash
#SBATCH --job-name=fedlora-scaling
#SBATCH --array=1-6
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
# A strong or weak scaling series as a job array: task 1, 2, 3, .. is 1, 2, 4, .. ranks of the job's nodes; --array=1-6 reaches 32. All tasks
# get the same nodes, mostly idle in the small ones; a series over many nodes is one sbatch --nodes=N --array=I for each size (I: 2^(I-1) ranks or all).
# usage: sbatch jobs/slurm-scaling.sh strong inputs/scaling/strong.yaml [--repeat 3] [--set section.key=value ...]
#        sbatch jobs/slurm-scaling.sh weak   inputs/scaling/weak.yaml
# OUT=DIR sbatch ... chooses the folder (runs/scaling-strong). Draw it: analysis/README.md.
set -u
cd "$SLURM_SUBMIT_DIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/slurm-env.sh
. "$jobs/slurm-env.sh" "$@"
exec "$jobs/scaling.sh" "$SLURM_ARRAY_TASK_ID" "$@"
