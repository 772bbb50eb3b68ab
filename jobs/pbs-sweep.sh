#!/usr/bin/env bash
#PBS -N fedlora-sweep
#PBS -J 1-9
#PBS -l select=1:ncpus=32:mpiprocs=32
#PBS -l walltime=04:00:00
#PBS -j oe
#PBS -r y
# Methods x seeds as a job array, a run for each task; -J 1-9 is three methods x three seeds.
# usage: METHODS="fedavg flora flexlora" SEEDS="1 2 3" DECK=inputs/shakespeare.yaml qsub -v METHODS,SEEDS,DECK jobs/pbs-sweep.sh
#        ARGS and OUT alike (runs/sweep). The table of all runs, when they are finished:
#   fedlora sweep inputs/shakespeare.yaml --over method.name=fedavg,flora,flexlora --over run.seed=1..3 --out runs/sweep
set -u
cd "$PBS_O_WORKDIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/pbs-env.sh
. "$jobs/pbs-env.sh" pbs-sweep.sh 4 METHODS SEEDS DECK ARGS OUT
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/sweep.sh" "$INDEX" "$METHODS" "$SEEDS" "$DECK" ${ARGS:-}
