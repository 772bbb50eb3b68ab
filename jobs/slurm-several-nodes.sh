#!/usr/bin/env bash
#SBATCH --job-name=fedlora
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# One run on several nodes, in as many jobs as it takes. Change the lines above to your nodes; modules go into site.sh.
# usage, from the top of the tree:  sbatch jobs/slurm-several-nodes.sh inputs/shakespeare.yaml [--set section.key=value ...]
# Ranks see their nodes through mpirun or srun (FEDLORA_LAUNCH=srun sbatch ...); base model and data are held once per node.
set -u
cd "$SLURM_SUBMIT_DIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/slurm-env.sh
. "$jobs/slurm-env.sh" "$@"
# exec, because the scheduler signals this process only (B:)
exec "$jobs/launch.sh" run "${@:-inputs/quickstart.yaml}"
