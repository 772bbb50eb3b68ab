#!/usr/bin/env bash
#PBS -N fedlora-scaling
#PBS -J 1-6
#PBS -l place=excl
#PBS -l select=1:ncpus=32:mpiprocs=32
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -r y
# A strong or weak scaling series as a job array: task 1, 2, 3, .. is 1, 2, 4, .. ranks of the job's nodes; -J 1-6 reaches 32.
# usage: qsub -v MODE=strong,DECK=inputs/scaling/strong.yaml,ARGS="--repeat 3" jobs/pbs-scaling.sh
#        qsub -v MODE=weak,DECK=inputs/scaling/weak.yaml jobs/pbs-scaling.sh            OUT=DIR in the list chooses the folder
set -u
cd "$PBS_O_WORKDIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/pbs-env.sh
. "$jobs/pbs-env.sh" pbs-scaling.sh 1 MODE DECK ARGS OUT
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/scaling.sh" "$INDEX" "${MODE:-strong}" "${DECK:-inputs/scaling/strong.yaml}" ${ARGS:-}
