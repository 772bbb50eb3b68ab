#!/usr/bin/env bash
#SBATCH --job-name=fedlora
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# One run on one node, in as many jobs as it takes. Change the lines above to your node; modules go into site.sh.
# usage, from the top of the tree:  sbatch jobs/slurm-one-node.sh inputs/shakespeare.yaml [--set section.key=value ...]
set -u
cd "$SLURM_SUBMIT_DIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/slurm-env.sh
. "$jobs/slurm-env.sh" "$@"
# exec, because the scheduler signals this process only (B:)
exec "$jobs/launch.sh" run "${@:-inputs/quickstart.yaml}"
