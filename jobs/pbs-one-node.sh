#!/usr/bin/env bash
#PBS -N fedlora
#PBS -l select=1:ncpus=32:mpiprocs=32
#PBS -l walltime=04:00:00
#PBS -j oe
#PBS -r y
# usage, from the top of the tree:  qsub -v DECK=inputs/shakespeare.yaml,ARGS="--set run.rounds=50" jobs/pbs-one-node.sh
# Change the lines above to your node, and the two numbers below with them. When the time is up PBS signals every process of a
# job at once, mpirun too, which then kills the ranks; so the run watches the clock itself and ends before, with code 75 and
# a checkpoint. Submit again to go on. By hand: touch OUT/STOP.
set -u
ranks=32
hours=4
cd "$PBS_O_WORKDIR" || exit 4
# module load openmpi hdf5 scalapack openblas

# several arguments in one variable
# shellcheck disable=SC2086
exec jobs/one-node.sh "$ranks" "${DECK:-inputs/quickstart.yaml}" --maxh "$hours" ${ARGS:-}
