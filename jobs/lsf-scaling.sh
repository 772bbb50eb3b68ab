#!/usr/bin/env bash
#BSUB -J "fedlora-scaling[1-6]"
#BSUB -n 32
#BSUB -R "span[hosts=1]"
#BSUB -W 1:00
#BSUB -x
#BSUB -r
#BSUB -o fedlora-scaling-%J-%I.log
# A strong or weak scaling series as a job array: task 1, 2, 3, .. is 1, 2, 4, .. ranks of the job's nodes; [1-6] reaches 32.
# usage: MODE=strong DECK=inputs/scaling/strong.yaml ARGS="--repeat 3" bsub < jobs/lsf-scaling.sh
#        MODE=weak DECK=inputs/scaling/weak.yaml bsub < jobs/lsf-scaling.sh                  OUT=DIR chooses the folder
set -u
cd "$LS_SUBCWD" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/lsf-env.sh
. "$jobs/lsf-env.sh" lsf-scaling.sh 1
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/scaling.sh" "$INDEX" "${MODE:-strong}" "${DECK:-inputs/scaling/strong.yaml}" ${ARGS:-}
