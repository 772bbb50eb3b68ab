#!/usr/bin/env bash
# chain.sh - where neither requeue nor submission from a node is allowed: submits N jobs at once, each waiting for the one before. A job
# that finds the run finished ends in a second, so N may be too large.
# usage: jobs/chain.sh N jobs/slurm-NAME.sh ARGUMENTS...       (pbs: DECK=.. ARGS=.. jobs/chain.sh N jobs/pbs-NAME.sh; lsf alike)
set -eu
if [ $# -lt 2 ] || ! [ "$1" -gt 0 ] 2>/dev/null; then
    echo "usage: jobs/chain.sh N jobs/SCHEDULER-NAME.sh [ARGUMENTS...]" >&2
    exit 2
fi
count=$1 script=$2
shift 2
export FEDLORA_CHAIN=none
last=
for ((i = 0; i < count; i++)); do
    case $(basename "$script") in
    slurm-*) last=$(sbatch --parsable ${last:+--dependency=afterany:$last} "$script" "$@") && last=${last%%;*} ;;
    pbs-*) last=$(qsub ${last:+-W depend=afterany:$last} -V "$script") ;;
    lsf-*) last=$(bsub ${last:+-w "ended($last)"} <"$script" | sed -n 's/^Job <\([0-9]*\)>.*/\1/p') ;;
    *)
        echo "chain: $script: the name must begin with slurm-, pbs- or lsf-" >&2
        exit 2
        ;;
    esac
    echo "$last"
done
