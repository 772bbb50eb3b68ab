#!/usr/bin/env bash
#PBS -N fedlora
#PBS -l place=scatter:excl
#PBS -l select=4:ncpus=32:mpiprocs=32
#PBS -l walltime=04:00:00
#PBS -j oe
#PBS -r y
# One run on several nodes, in as many jobs as it takes. Change the lines above to your nodes; modules go into site.sh.
# usage, from the top of the tree:  qsub -v DECK=inputs/shakespeare.yaml,ARGS="--set run.rounds=50" jobs/pbs-several-nodes.sh
# Base model and data are held once per node.
set -u
cd "$PBS_O_WORKDIR" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/pbs-env.sh
. "$jobs/pbs-env.sh" pbs-several-nodes.sh 4 DECK ARGS
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/launch.sh" run "${DECK:-inputs/quickstart.yaml}" ${ARGS:-}
