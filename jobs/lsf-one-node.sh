#!/usr/bin/env bash
#BSUB -J "fedlora"
#BSUB -n 32
#BSUB -R "span[hosts=1]"
#BSUB -W 4:00
#BSUB -r
#BSUB -o fedlora-%J.log
# One run on one node, in as many jobs as it takes. Change the lines above to your node; modules go into site.sh.
# usage, from the top of the tree:  DECK=inputs/shakespeare.yaml ARGS="--set run.rounds=50" bsub < jobs/lsf-one-node.sh
set -u
cd "$LS_SUBCWD" || exit 4
jobs=${FEDLORA_JOBS:-${FEDLORA_SHARE:+$FEDLORA_SHARE/}jobs}
# shellcheck source=jobs/lsf-env.sh
. "$jobs/lsf-env.sh" lsf-one-node.sh 4
# several arguments in one variable
# shellcheck disable=SC2086
exec "$jobs/launch.sh" run "${DECK:-inputs/quickstart.yaml}" ${ARGS:-}
