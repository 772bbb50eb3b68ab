#!/usr/bin/env bash
#PBS -N fedlora
#PBS -l select=1:ncpus=32:mpiprocs=32
#PBS -l walltime=04:00:00
#PBS -j oe
#PBS -r y
# One run on one node, in as many jobs as it takes. Change the lines above to your node; modules go into site.sh.
# usage, from the top of the tree:  qsub -v DECK=inputs/shakespeare.yaml,ARGS="--set run.rounds=50" jobs/pbs-one-node.sh
# ARGS with commas: export DECK and ARGS, then  qsub -v DECK,ARGS jobs/pbs-one-node.sh
set -u
cd "$PBS_O_WORKDIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/pbs-env.sh
. "$jobs/pbs-env.sh" pbs-one-node.sh 4 DECK ARGS
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/launch.sh" run "${DECK:-inputs/quickstart.yaml}" ${ARGS:-}
