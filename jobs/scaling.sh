#!/usr/bin/env bash
# scaling.sh - one point of a strong or weak scaling series, as task INDEX of a job array: index 1, 2, 3, .. is 1, 2, 4, .. ranks, the last one all
# ranks of the job. Each task writes its own table, OUT/ranks-P/scaling.csv; OUT/scaling.csv has the rows of all that are done.
# usage: FEDLORA_RANKS=n [OUT=runs/scaling] jobs/scaling.sh INDEX strong|weak DECK [ARGUMENTS OF fedlora scale...]
set -u
if [ $# -lt 3 ]; then
    echo "usage: FEDLORA_RANKS=n jobs/scaling.sh INDEX strong|weak DECK [--repeat N] [--set section.key=value ...]" >&2
    exit 2
fi
index=$1 mode=$2
shift 2
all=${FEDLORA_RANKS:-1}
ranks=$((1 << (index - 1)))
if [ "$ranks" -gt "$all" ]; then
    if [ $((ranks / 2)) -ge "$all" ]; then
        echo "scaling: the series on $all ranks ends before point $index; nothing to do"
        exit 0
    fi
    ranks=$all
fi
out=${OUT:-runs/scaling-$mode}
export FEDLORA_RANKS=$ranks
here=$(dirname "$0")
printf -v FEDLORA_AFTER '%q %q' "$here/merge-csv.sh" "$out/scaling.csv"
export FEDLORA_AFTER
exec "$here/launch.sh" scale "$@" --mode "$mode" --ranks "$ranks" --out "$out/ranks-$ranks"
