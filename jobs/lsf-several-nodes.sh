#!/usr/bin/env bash
#BSUB -J "fedlora"
#BSUB -n 128
#BSUB -R "span[ptile=32]"
#BSUB -W 4:00
#BSUB -r
#BSUB -o fedlora-%J.log
# One run on several nodes, in as many jobs as it takes. Change the lines above to your nodes; modules go into site.sh.
# usage, from the top of the tree:  DECK=inputs/shakespeare.yaml ARGS="--set run.rounds=50" bsub < jobs/lsf-several-nodes.sh
# Base model and data are held once per node.
set -u
cd "$LS_SUBCWD" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/lsf-env.sh
. "$jobs/lsf-env.sh" lsf-several-nodes.sh 4
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/launch.sh" run "${DECK:-inputs/quickstart.yaml}" ${ARGS:-}
