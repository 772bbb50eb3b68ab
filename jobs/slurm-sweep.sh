#!/usr/bin/env bash
#SBATCH --job-name=fedlora-sweep
#SBATCH --array=1-9
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
# Methods x seeds as a job array, a run for each task; --array=1-9 is three methods x three seeds (--array=1-9%4: four at a time).
# usage: sbatch jobs/slurm-sweep.sh "fedavg flora flexlora" "1 2 3" inputs/shakespeare.yaml [--set section.key=value ...]
# OUT=DIR sbatch ... chooses the folder (runs/sweep). The table of all runs, when they are finished:
#   fedlora sweep inputs/shakespeare.yaml --over method.name=fedavg,flora,flexlora --over run.seed=1..3 --out runs/sweep
set -u
cd "$SLURM_SUBMIT_DIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/slurm-env.sh
. "$jobs/slurm-env.sh" "$@"
exec "$jobs/sweep.sh" "$SLURM_ARRAY_TASK_ID" "$@"
