#!/usr/bin/env bash
#BSUB -J "fedlora-sweep"
#BSUB -n 128
#BSUB -R "span[ptile=32]"
#BSUB -W 4:00
#BSUB -r
#BSUB -o fedlora-sweep-%J.log
# Many runs in one job: the ranks are divided into groups, each run is bit-identical to the same run alone.
# usage: DECK=inputs/shakespeare.yaml ARGS="--over method.name=fedavg,flora --over run.seed=1..5 --out runs/sweep" bsub < jobs/lsf-sweep-one-job.sh
set -u
cd "$LS_SUBCWD" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/lsf-env.sh
. "$jobs/lsf-env.sh" lsf-sweep-one-job.sh 4
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/launch.sh" sweep "$DECK" ${ARGS:-}
