#!/usr/bin/env bash
#PBS -N fedlora-sweep
#PBS -l select=4:ncpus=32:mpiprocs=32
#PBS -l walltime=04:00:00
#PBS -j oe
#PBS -r y
# Many runs in one job: the ranks are divided into groups, each run is bit-identical to the same run alone.
# usage: export DECK=inputs/shakespeare.yaml ARGS="--over method.name=fedavg,flora --over run.seed=1..5 --out runs/sweep"
#        qsub -v DECK,ARGS jobs/pbs-sweep-one-job.sh
set -u
cd "$PBS_O_WORKDIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/pbs-env.sh
. "$jobs/pbs-env.sh" pbs-sweep-one-job.sh 4 DECK ARGS
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/launch.sh" sweep "$DECK" ${ARGS:-}
