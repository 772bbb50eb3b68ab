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
# usage, from the top of the tree:  sbatch jobs/slurm-one-node.sh inputs/shakespeare.yaml [--set section.key=value ...]
# Change the lines above to your node. 75 means that time was short and a checkpoint is there:
#   FEDLORA_REQUEUE=1 sbatch ...     puts the same job into the queue again by itself, until the run is finished
set -u
cd "$SLURM_SUBMIT_DIR" || exit 4
# module load openmpi hdf5 scalapack openblas

# the end as the scheduler sees it now: the limit may have been changed since
if end=$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s); then
    export FEDLORA_END_TIME=$end
fi

if [ "${FEDLORA_REQUEUE:-0}" = 1 ]; then
    export FEDLORA_AGAIN="scontrol requeue $SLURM_JOB_ID"
fi
# exec, because the scheduler signals this process only (B:)
exec jobs/one-node.sh "$SLURM_NTASKS_PER_NODE" "${@:-inputs/quickstart.yaml}"
