#!/usr/bin/env bash
#BSUB -J fedlora
#BSUB -n 32
#BSUB -R "span[hosts=1]"
#BSUB -W 4:00
#BSUB -r
#BSUB -o fedlora-%J.log
# usage, from the top of the tree:  DECK=inputs/shakespeare.yaml ARGS="--set run.rounds=50" bsub < jobs/lsf-one-node.sh
# Change the lines above to your node, and the number of hours below with them. LSF signals every process of a job at once,
# mpirun too, which then kills the ranks; so the run watches the clock itself and ends before, with code 75 and a checkpoint.
# Submit again to go on. By hand: touch OUT/STOP.
set -u
hours=4
cd "$LS_SUBCWD" || exit 4
# module load openmpi hdf5 scalapack openblas

# several arguments in one variable
# shellcheck disable=SC2086
exec jobs/one-node.sh "$LSB_DJOB_NUMPROC" "${DECK:-inputs/quickstart.yaml}" --maxh "$hours" ${ARGS:-}
