#!/usr/bin/env bash
#BSUB -J "fedlora-sweep[1-9]"
#BSUB -n 32
#BSUB -R "span[hosts=1]"
#BSUB -W 4:00
#BSUB -r
#BSUB -o fedlora-sweep-%J-%I.log
# Methods x seeds as a job array, a run for each task; [1-9] is three methods x three seeds.
# usage: METHODS="fedavg flora flexlora" SEEDS="1 2 3" DECK=inputs/shakespeare.yaml bsub < jobs/lsf-sweep.sh
#        ARGS and OUT alike (runs/sweep). The table of all runs, when they are finished:
#   fedlora sweep inputs/shakespeare.yaml --over method.name=fedavg,flora,flexlora --over run.seed=1..3 --out runs/sweep
set -u
cd "$LS_SUBCWD" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/lsf-env.sh
. "$jobs/lsf-env.sh" lsf-sweep.sh 4
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/sweep.sh" "$INDEX" "$METHODS" "$SEEDS" "$DECK" ${ARGS:-}
